"""Hyperparameters on the command line: precedence, stored form, and the generated page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from luthier.catalog.entry import find
from luthier.catalog.hyperparameters import TABLE, Hyperparameter
from luthier.cli.hyperparameters import TITLES, TYPES, describe, read_hyperparameters, to_strings
from luthier.errors import SettingError
from reference_pages.hyperparameters_page import hyperparameter_tests, hyperparameters_page, range_of


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_the_last_value_wins_and_set_overrides_the_file(tmp_path: Path) -> None:
    config = write(tmp_path / "c.yaml", "epoch: 4\nlora_r: 2\nsagemaker_region: here\n")
    settings = read_hyperparameters(config, ["epochs=5", "epochCount=6", "sagemaker_program=x"], None)
    assert to_strings(settings) == {
        "epoch": "6", "lora_r": "2", "sagemaker_region": "here", "sagemaker_program": "x"
    }  # fmt: skip


def test_a_models_defaults_and_ranges_apply() -> None:
    entry = find("gemma-2b")
    assert entry
    settings = read_hyperparameters(None, ["epoch=2"], entry)
    assert (settings["epoch"], settings["lora_r"]) == (2, 64)
    assert to_strings(settings) == {"epoch": "2"}
    with pytest.raises(SettingError, match=r"seed=0: expected .* at least 1 and at most 1000 \(the model's range\)"):
        read_hyperparameters(None, ["seed=0"], entry)


def test_lists_in_a_file(tmp_path: Path) -> None:
    config = write(tmp_path / "c.yaml", "lora_target_modules: [q_proj, v_proj]\nmax_steps: null\n")
    assert to_strings(read_hyperparameters(config, [], None)) == {
        "max_steps": "-1",
        "lora_target_modules": "q_proj,v_proj",
    }


@pytest.mark.parametrize("row", TABLE.values(), ids=lambda row: row.name)
def test_each_row_is_described_as_json(row: Hyperparameter) -> None:
    described = json.loads(json.dumps(describe(row)))
    assert described["name"] == row.name
    assert described["type"] == TYPES[row.type]
    assert row.group in TITLES
    assert range_of(row) or row.type in ("text", "pattern")


@pytest.mark.parametrize(
    ("name", "words"),
    [("epoch", "1 to 1000"), ("learning_rate", "above 0 and at most 1"), ("max_steps", "at least 1, or -1"),
     ("preprocessing_num_workers", "at least 1, or None"), ("bits", "4, 8, 16"), ("packing", "True, False"),
     ("adam_beta1", "at least 0 and below 1"), ("seed", "0 to 2147483647")],
)  # fmt: skip
def test_range_of_a_row(name: str, words: str) -> None:
    assert range_of(TABLE[name]) == words


def test_the_page_names_the_test_of_every_hyperparameter() -> None:
    test_files = hyperparameter_tests()
    assert set(test_files) == set(TABLE)
    page = hyperparameters_page()
    for name, file in test_files.items():
        line = next(line for line in page.splitlines() if line.startswith(f"| `{name}` |"))
        assert line.endswith(f"| [{file.removesuffix('.py')}](../tests/training/{file}) |")


def test_the_page_names_every_models_own_defaults() -> None:
    page = hyperparameters_page()
    line = next(line for line in page.splitlines() if line.startswith("| gemma-2b, gemma-2b-it |"))
    assert "`lora_r` 64" in line
    assert "`weight_decay` at least 1e-08" in line
    assert "`epoch` 3" not in page  # equal to the table's default, so not repeated
