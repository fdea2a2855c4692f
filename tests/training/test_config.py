"""From hyperparameters to settings: what is grouped, implied, refused, and said to change nothing."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from luthier.catalog.hyperparameters import parse
from luthier.errors import SettingError
from luthier.training.config import Settings, read_settings


def settings_of(**raw: Any) -> Settings:
    return read_settings(parse({name: str(value) for name, value in raw.items()}))


def refusal(**raw: Any) -> str:
    with pytest.raises(SettingError) as caught:
        settings_of(**raw)
    return str(caught.value)


def test_each_value_lands_in_its_place() -> None:
    """Every hyperparameter here differs from every other, so that two swapped ones would show."""
    raw = {
        "epoch": 11, "max_steps": 12, "per_device_train_batch_size": 13, "per_device_eval_batch_size": 14,
        "gradient_accumulation_steps": 15, "packing": False, "gradient_checkpointing": True, "seed": 16, "bf16": "True",
        "train_from_scratch": False, "lora_r": 17, "lora_alpha": 18, "lora_dropout": 0.19,
        "lora_target_modules": "all-linear", "learning_rate": 0.2, "lr_scheduler_type": "cosine", "warmup_ratio": 0.21,
        "warmup_steps": 22, "weight_decay": 0.23, "adam_beta1": 0.24, "adam_beta2": 0.25, "adam_epsilon": 0.26,
        "max_grad_norm": 0.27, "evaluation_strategy": "steps", "eval_steps": 28, "save_strategy": "no",
        "save_steps": 29, "save_total_limit": 30, "load_best_model_at_end": False, "early_stopping_patience": 31,
        "early_stopping_threshold": 0.32, "logging_steps": 33,
    }  # fmt: skip
    found = settings_of(**raw)
    groups: list[Any] = [found.run, found.method, found.optimizer, found.validation]
    values = [[getattr(group, item.name) for item in fields(group)] for group in groups]
    assert values == [
        [11, 12, 13, 14, 15, False, True, 16, "True", False],
        [True, 17, 18, 0.19, "all-linear"],
        [0.2, "cosine", 0.21, 22, 0.23, (0.24, 0.25), 0.26, 0.27],
        ["steps", 28, "no", 29, 30, False, 31, 0.32, 33],
    ]
    names = [[item.name for item in fields(group)] for group in groups]
    assert names == [
        ["epochs", "max_steps", "rows_per_batch", "eval_rows_per_batch", "accumulation", "packing",
         "gradient_checkpointing", "seed", "bf16", "from_scratch"],
        ["lora", "r", "alpha", "dropout", "targets"],
        ["learning_rate", "scheduler", "warmup_ratio", "warmup_steps", "weight_decay", "betas", "epsilon",
         "max_grad_norm"],
        ["evaluate", "eval_steps", "save", "save_steps", "save_total_limit", "best_at_end", "patience", "threshold",
         "logging_steps"],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("raw", "evaluate", "save"),
    [
        ({}, "epoch", "epoch"),
        ({"eval_steps": 5}, "steps", "epoch"),
        ({"save_steps": 5}, "epoch", "steps"),
        ({"eval_steps": 5, "evaluation_strategy": "no"}, "no", "epoch"),
        ({"save_steps": 5, "save_strategy": "epoch"}, "epoch", "epoch"),
        ({"evaluation_strategy": "steps"}, "steps", "epoch"),
        ({"eval_strategy": "no", "eval_steps": 5}, "no", "epoch"),
    ],
)
def test_an_interval_alone_asks_for_steps(raw: dict[str, Any], evaluate: str, save: str) -> None:
    found = settings_of(**raw).validation
    assert (found.evaluate, found.save) == (evaluate, save)


def test_a_familys_own_interval_asks_for_nothing() -> None:
    """Only what the user sets implies a strategy."""
    assert read_settings(parse({}, {"eval_steps": 5})).validation.evaluate == "epoch"


@pytest.mark.parametrize("name", ["warmup_steps", "warmup_ratio"])
def test_a_constant_rate_has_no_warm_up(name: str) -> None:
    assert "constant has no warm-up; use constant_with_warmup" in refusal(lr_scheduler_type="constant", **{name: 1})
    assert settings_of(lr_scheduler_type="constant_with_warmup", **{name: 1}).idle == ()
    assert read_settings(parse({"lr_scheduler_type": "constant"}, {name: "1"}))  # the family's is set aside


def test_an_adapter_on_weights_that_are_not_kept_is_refused() -> None:
    assert "add peft_type=none" in refusal(train_from_scratch=True)
    assert settings_of(train_from_scratch=True, peft_type="none").run.from_scratch


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ({"peft_type": "none", "lora_r": 4}, ["lora_r has no effect with peft_type=none"]),
        ({"peft_type": "none", "lora_alpha": 4, "lora_dropout": 0, "lora_target_modules": "all-linear"},
         [f"lora_{name} has no effect with peft_type=none" for name in ("alpha", "dropout", "target_modules")]),
        ({"evaluation_strategy": "epoch", "eval_steps": 3},
         ["eval_steps has no effect with evaluation_strategy=epoch"]),
        ({"save_strategy": "no", "save_steps": 3}, ["save_steps has no effect with save_strategy=no"]),
        ({"evaluation_strategy": "no", "early_stopping_patience": 2, "early_stopping_threshold": 0.1},
         [f"early_stopping_{name} has no effect with evaluation_strategy=no" for name in ("patience", "threshold")]),
        ({"warmup_ratio": 0.1, "warmup_steps": 5}, ["warmup_ratio has no effect with warmup_steps=5"]),
        ({"epoch": 2, "max_steps": 5}, ["epoch has no effect with max_steps=5"]),
        ({"load_best_model_at_end": True, "evaluation_strategy": "no"},
         ["load_best_model_at_end has no effect with evaluation_strategy=no"]),
        ({"early_stopping_threshold": 0.1, "early_stopping_patience": -1},
         ["early_stopping_threshold has no effect with early_stopping_patience=-1"]),
    ],
)  # fmt: skip
def test_what_changes_nothing_is_said(raw: dict[str, Any], said: list[str]) -> None:
    assert list(settings_of(**raw).idle) == said


@pytest.mark.parametrize(
    "raw", [{}, {"peft_type": "none"}, {"evaluation_strategy": "no"}, {"max_steps": 5}, {"eval_steps": 3},
            {"warmup_ratio": 0.1}, {"warmup_ratio": 0.1, "warmup_steps": 0}, {"save_steps": 3, "lora_r": 3},
            {"load_best_model_at_end": False, "evaluation_strategy": "no"}, {"early_stopping_patience": -1}],
)  # fmt: skip
def test_what_has_an_effect_or_was_not_set_is_not_mentioned(raw: dict[str, Any]) -> None:
    assert settings_of(**raw).idle == ()
