"""Every documented form of data, with the embedded model, LoRA and full: a few real steps from files to artifact."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
import pytest
from training.job_folders import lay_out, run

from luthier.jobfolder import find_channels

DATA = Path(__file__).parents[1] / "samples"
EXAMPLES = Path(__file__).parents[2] / "examples"

# folder -> the kind that is found
FORMS = {
    "gsm8k": "instruction",
    "superni": "instruction",
    "self_instruct": "instruction",
    "chat": "chat",
    "autopilot_csv": "autopilot",
    "autopilot_parquet": "autopilot",
    "domain/csv": "domain",
    "domain/json": "domain",
    "domain/txt": "domain",
    "domain/txt_japanese": "domain",
}
SHORT = {"max_steps": 2, "max_input_length": 256, "per_device_train_batch_size": 2, "max_val_samples": 4,
         "learning_rate": 0.001, "score_rows": 2}  # fmt: skip


def rows_of(file: Path) -> int | None:
    """Rows of a file, counted without Luthier; None for running text, whose rows are its reader's choice."""
    if file.suffix == ".jsonl":
        return file.read_bytes().count(b"\n")
    if file.suffix == ".csv":
        with open(file, encoding="utf-8", newline="") as handle:
            return sum(1 for _ in csv.DictReader(handle))
    if file.suffix == ".parquet":
        return int(parquet.read_metadata(file).num_rows)
    return None


@pytest.mark.parametrize("method", ["lora", pytest.param("none", marks=pytest.mark.slow)])
@pytest.mark.parametrize("form", FORMS)
def test_a_form_of_data_trains(tmp_path: Path, form: str, method: str) -> None:
    kind = FORMS[form]
    channels = {name: path for name, path in find_channels(DATA / form).items() if name != "test"}
    folder = lay_out(tmp_path / "run", "luthier/tiny", DATA / form, channels=channels, peft_type=method, **SHORT)
    run(folder)
    record: dict[str, Any] = json.loads((folder.root / "run.json").read_text("utf-8"))
    metrics: dict[str, Any] = json.loads(folder.metrics.read_text("utf-8"))
    ledger = folder.ledger.read_text("utf-8").count("\n")
    assert record["kind"] == kind
    assert ledger == record["data"]["counts"]["rows"]
    expected = [rows_of(file) for folder in channels.values() for file in folder.iterdir() if file.stem != "template"]
    assert None in expected or ledger == sum(count or 0 for count in expected)
    assert metrics["steps"] == 2
    assert metrics["tuned"]["loss"] < metrics["base"]["loss"] + 0.5
    assert (metrics["tuned"]["rougeL"] is None) == (kind == "domain")
    assert folder.artifact.exists()


@pytest.mark.slow
def test_the_demo_becomes_clearly_better(tmp_path: Path) -> None:
    channels = find_channels(EXAMPLES / "reviews")
    folder = lay_out(
        tmp_path / "run", "luthier/tiny", EXAMPLES / "reviews", channels=channels, score_rows=-1, epoch=3,
        learning_rate=0.001, per_device_train_batch_size=8, lora_r=16, lora_dropout=0,
    )  # fmt: skip
    run(folder)
    metrics: dict[str, Any] = json.loads(folder.metrics.read_text("utf-8"))
    assert metrics["split"] == "test"
    assert metrics["tuned"]["loss"] <= 0.7 * metrics["base"]["loss"]
    assert metrics["tuned"]["exact_match"] >= metrics["base"]["exact_match"] + 0.4
