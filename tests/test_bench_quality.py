"""`bench quality`: recipes that exist, rows that do not overlap, one measure for all, honest verdicts."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers

from bench import quality
from bench.field.quality_run import held_out_loss
from luthier.catalog.locate import EMBEDDED
from luthier.data.batches import Layout
from luthier.data.prepare import prepare
from luthier.data.settings import DataSettings
from luthier.data.tokenize import Tokenizer
from luthier.evaluation.likelihood import aggregate, score_rows
from luthier.weights.load import load_model

OPTIONS = argparse.Namespace(rows=12, epochs=1, threads=1, recipes=(), set=["learning_rate=0.002"])


def result(**losses: float) -> dict[str, Any]:
    contenders = {name: {"base_loss": 2.0, "loss": loss, "steps": 3} for name, loss in losses.items()}
    return {"task": "t", "rows": 12, "epochs": 1, "contenders": contenders}


def test_recipes_name_settings_that_exist() -> None:
    training = {field.name for field in dataclasses.fields(transformers.TrainingArguments)}
    adapter = {field.name for field in dataclasses.fields(peft.LoraConfig)}
    for name, recipe in quality.recipes().items():
        assert set(recipe) - {"changed"} == {"source", "training", "adapter"}, name
        assert set(recipe["training"]) <= training - {"num_train_epochs", "seed"}, name
        assert set(recipe["adapter"]) <= adapter, name


@pytest.mark.parametrize("task", quality.TASKS.values(), ids=lambda task: task.name)
def test_no_row_is_in_two_splits(task: quality.Task) -> None:
    drawn = quality.draw(task, 20)
    assert (len(drawn["test"]), len(drawn["validation"])) == (quality.HELD_OUT, quality.VALIDATION)
    assert 10 <= len(drawn["train"]) <= 20
    texts = [json.dumps(row) for rows in drawn.values() for row in rows]
    assert len(set(texts)) == len(texts)
    assert max(map(len, texts)) <= quality.MAX_CHARACTERS + 100
    assert quality.draw(task, 20) == drawn


def test_a_peer_s_loss_is_luthier_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality, "CACHE", tmp_path)
    monkeypatch.setattr(quality, "HELD_OUT", 6)
    channel = quality.write_channels(quality.TASKS["reasoning"], 6, tmp_path / "channels")["test"]
    ids = quality.write_ids(channel, EMBEDDED, tmp_path / "test.jsonl")
    rows = [json.loads(line) for line in ids.read_text("utf-8").splitlines()]
    assert len(rows) == 6
    network = transformers.AutoModelForCausalLM.from_pretrained(EMBEDDED, dtype=torch.float32)
    prepared = prepare({"training": channel}, DataSettings(kind="auto", validation_split_ratio=0.0),
                       Tokenizer.load(EMBEDDED), tmp_path / "cache")  # fmt: skip
    model = load_model(EMBEDDED, torch.device("cpu"), torch.float32, frozen=True)
    own = aggregate(score_rows(model, prepared.tokens, prepared.split.train, rows_per_batch=4, layout=Layout(True, 0)))
    assert held_out_loss(network, rows) == pytest.approx(own.loss, rel=1e-5)


@pytest.mark.slow
def test_luthier_s_run_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality, "CACHE", tmp_path)
    monkeypatch.setattr(quality, "HELD_OUT", 12)
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    contenders = quality.run_task(quality.TASKS["reviews"], "luthier/tiny", {}, OPTIONS)["contenders"]
    assert list(contenders) == ["luthier", "luthier learning_rate=0.002"]
    assert all(each["loss"] < each["base_loss"] for each in contenders.values())
    assert contenders["luthier"]["loss"] != contenders["luthier learning_rate=0.002"]["loss"]


def test_a_lower_loss_and_another_start_are_named() -> None:
    assert quality.losses_to(result(luthier=1.0, trl=0.99, unsloth=1.2)) == ["trl"]
    assert quality.losses_to(result(luthier=1.0, trl=1.0 - quality.NOISE / 2)) == []
    assert quality.losses_to(result(luthier=1.0) | {"contenders": result(luthier=1.0)["contenders"] | {
        "trl": {"reason": "out of strings"}}}) == []  # fmt: skip
    other = result(luthier=1.0, trl=1.0)
    other["contenders"]["trl"]["base_loss"] += 0.1
    assert quality.disagreements(other) == ["trl"]
    assert quality.disagreements(result(luthier=1.0, trl=1.0)) == []


def test_the_table_has_a_line_for_each() -> None:
    table = quality.render([result(luthier=1.0, trl=1.5)]).splitlines()
    assert len(table) == 4
    assert table[-1] == "| t, 12 rows, 1 epochs | trl | 3 | 2.000 | 1.500 | +0.500 |"


def test_an_unknown_recipe_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        quality.main(["--recipes", "axolotl"])
    assert "--recipes axolotl: expected trl, llama-factory, unsloth" in capsys.readouterr().err
