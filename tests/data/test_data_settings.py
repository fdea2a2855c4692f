from __future__ import annotations

from typing import Any

import pytest

from luthier.catalog.hyperparameters import parse
from luthier.data.settings import DataSettings
from luthier.data.template import Template
from luthier.errors import SettingError


def settings(**raw: Any) -> DataSettings:
    values = parse(raw)
    return DataSettings.from_hyperparameters("instruction", values, values.explicit, None, 2048)


def test_every_data_hyperparameter_arrives() -> None:
    assert settings() == DataSettings(kind="instruction", context_length=2048)
    found = settings(
        max_input_length="77", max_output_length="9", validation_split_ratio="0.1", test_split_ratio="0.05",
        train_data_split_seed="3", max_train_samples="5", max_eval_samples="6", max_test_samples="7",
        add_input_output_demarcation_key="False", completion_only_loss="False", group_near_duplicates="True",
        parse_special_tokens="True", train_on_turns="last", reasoning="inline",
    )  # fmt: skip
    assert found == DataSettings(
        kind="instruction", max_input_length=77, max_output_length=9, validation_split_ratio=0.1, test_split_ratio=0.05,
        split_seed=3, max_samples=(5, 6, 7), demarcation=False,
        completion_only=False, group_near_duplicates=True, control_tokens=True, train_on_turns="last",
        reasoning="inline", context_length=2048, explicit=found.explicit,
    )  # fmt: skip
    assert "max_val_samples" in found.explicit


def test_scoring_only_holds_nothing_out() -> None:
    template = Template("{q}", "{a}")
    found = settings(validation_split_ratio="0.3", max_train_samples="5").scoring_only(template)
    assert (found.validation_split_ratio, found.test_split_ratio, found.max_samples) == (0, 0, (-1, -1, -1))
    assert found.template == template


@pytest.mark.parametrize(
    ("asked", "tokenizer", "context", "window"),
    [(-1, 2048, 4096, 1024), (-1, 512, 4096, 512), (-1, 1 << 30, 256, 256), (-1, 1 << 30, 0, 1024),
     (3000, 1 << 30, 0, 3000)],
)  # fmt: skip
def test_the_window(asked: int, tokenizer: int, context: int, window: int) -> None:
    assert DataSettings(max_input_length=asked, context_length=context).resolve_max_length(tokenizer) == (window, "")


def test_a_window_above_the_limit_is_lowered_and_said() -> None:
    window, said = DataSettings(max_input_length=3000, context_length=2048).resolve_max_length(1 << 30)
    assert window == 2048
    assert said == "max_input_length=3000 is above the model's context; using 2048"


def test_a_window_of_one_token_is_refused() -> None:
    with pytest.raises(SettingError, match="at least 2"):
        DataSettings(max_input_length=1).resolve_max_length(100)
