"""A whole job: what it leaves in its folder, what it refuses, and what it says when it fails."""

from __future__ import annotations

import dataclasses
import json
import math
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tiny_models import write_model, write_rows
from training.job_folders import lay_out, lines, run, start

from luthier.catalog.hyperparameters import TABLE
from luthier.errors import CapacityError, DataError, EulaError, Interrupted, RunFolderError, SettingError
from luthier.jobfolder import JobFolder
from luthier.training import job as job_module
from luthier.training.resolved_job import resolve_job

METRICS = ("loss", "perplexity", "token_accuracy", "rouge1", "rouge2", "rougeL", "rougeLsum", "exact_match")


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "llama", "llama")


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows") / "train.jsonl", 40).parent


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, model: Path, rows: Path) -> JobFolder:
    folder = lay_out(tmp_path_factory.mktemp("job") / "run", model, rows, test_split_ratio=0.1, score_rows=-1)
    run(folder)
    return folder


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return found


def test_the_run_folder_holds_what_is_promised(finished: JobFolder) -> None:
    names = {path.name for path in finished.root.iterdir()}
    assert names >= {
        "input", "checkpoints", "model", "scores", "metrics.json", "metrics.jsonl", "ledger.jsonl", "split.json",
        "report.html", "model.tar.gz", "run.json", "tensorboard",
    }  # fmt: skip
    assert list(finished.events.glob("events.out.tfevents.*"))
    with tarfile.open(finished.artifact) as tar:
        assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "template.json",
                "luthier.json"} <= set(tar.getnames())  # fmt: skip


def test_metrics_json_has_both_models_and_the_differences(finished: JobFolder) -> None:
    metrics = read(finished.metrics)
    assert (metrics["format_version"], metrics["split"], metrics["rows"]) == (1, "test", 4)
    for model in ("base", "tuned"):
        assert set(METRICS) <= set(metrics[model])
        assert metrics[model]["perplexity"] == pytest.approx(math.exp(metrics[model]["loss"]))
    assert metrics["tuned"]["loss"] < metrics["base"]["loss"]
    change = metrics["difference"]["loss"]
    assert change["value"] == pytest.approx(metrics["tuned"]["loss"] - metrics["base"]["loss"])
    assert change["low"] <= change["value"] <= change["high"]
    assert metrics["validation"]["rows"] == 8
    assert metrics["cost"]["train_tokens"] > metrics["cost"]["completion_tokens"] > 0
    assert metrics["adapted_layers"] == "q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj"
    losses = [line["eval_loss"] for line in lines(finished) if "eval_loss" in line]
    assert bool(metrics["next_steps"]) == (losses[-1] < 0.99 * losses[-2])
    page = finished.report.read_text("utf-8")
    assert f"on the layers {metrics['adapted_layers']}" in page
    assert ("What to try next" in page) == bool(metrics["next_steps"])
    assert metrics["notes"] == [note for note in metrics["notes"] if "chose the checkpoint" not in note]


def test_metrics_jsonl_has_each_step_and_each_validation(finished: JobFolder) -> None:
    found = lines(finished)
    steps = [line for line in found if "loss" in line]
    validations = [line for line in found if "eval_loss" in line]
    assert [line["step"] for line in steps] == list(range(1, len(steps) + 1))
    assert {"step", "epoch", "loss", "learning_rate", "tokens", "completion_tokens"} <= set(steps[0])
    assert [line["epoch"] for line in validations] == [1.0, 2.0]
    assert {"eval_loss", "eval_token_accuracy"} <= set(validations[0])


def test_every_input_row_is_in_the_ledger_and_the_split(finished: JobFolder) -> None:
    ledger = [json.loads(line) for line in finished.ledger.read_text("utf-8").splitlines()]
    split = read(finished.split)
    assert len(ledger) == 40
    assert [len(split[name]) for name in ("train", "validation", "test")] == [28, 8, 4]
    assert sorted(split["train"] + split["validation"] + split["test"]) == sorted(line["row"] for line in ledger)


def test_provenance_says_what_was_trained_on_what(finished: JobFolder) -> None:
    record = read(finished.model / "luthier.json")
    assert record["model"]["architecture"] == "LlamaForCausalLM"
    assert len(record["model"]["weights_sha256"]) == 64
    assert set(record["data"]["files"]) == {"training/train.jsonl"}
    assert record["data"]["counts"]["rows"] == 40
    assert record["settings"]["learning_rate"] == 0.01
    assert {"torch", "transformers", "peft", "luthier"} <= set(record["versions"])
    assert record["template"]["completion"] == "{response}"


def test_the_same_seed_gives_the_same_run(tmp_path: Path, finished: JobFolder, model: Path, rows: Path) -> None:
    again = lay_out(tmp_path / "again", model, rows, test_split_ratio=0.1, score_rows=-1)
    run(again)
    assert lines(again) == lines(finished)
    assert read(again.metrics)["tuned"] == read(finished.metrics)["tuned"]


def test_without_held_out_rows_nothing_is_scored_and_that_is_said(tmp_path: Path, model: Path, rows: Path) -> None:
    folder = lay_out(tmp_path / "run", model, rows, validation_split_ratio=0, max_steps=2)
    output = run(folder)
    metrics = read(folder.metrics)
    assert (metrics["split"], metrics["base"], metrics["tuned"]) == (None, None, None)
    assert "nothing was scored" in " ".join(output.split())


def test_two_runs_in_one_folder_are_refused(tmp_path: Path, model: Path, rows: Path) -> None:
    folder = lay_out(tmp_path / "run", model, rows)
    with folder.locked(), pytest.raises(RunFolderError, match="another run is using this folder"):
        run(folder)


def test_changed_data_are_not_resumed(tmp_path: Path, model: Path) -> None:
    path = write_rows(tmp_path / "rows" / "train.jsonl", 30)
    folder = lay_out(tmp_path / "run", model, path.parent, max_steps=2)
    run(folder)
    write_rows(path, 31, seed=7)
    with pytest.raises(RunFolderError, match="the stored train rows differ from"):
        run(folder, resume=True)


def test_too_many_truncated_rows_are_refused(tmp_path: Path, model: Path) -> None:
    path = tmp_path / "rows" / "train.jsonl"
    path.parent.mkdir()
    row = {"instruction": "a", "context": "b", "response": "long " * 60}
    path.write_text((json.dumps(row) + "\n") * 5)
    folder = lay_out(tmp_path / "run", model, path.parent, max_truncated=0.5)
    with pytest.raises(DataError, match=r"5 of 5 rows are truncated; the allowed fraction is 0\.5"):
        run(folder)
    assert folder.ledger.read_text().count('"truncated"') == 5


def test_a_full_disk_is_found_before_the_start(
    tmp_path: Path, model: Path, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = lay_out(tmp_path / "run", model, rows)
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("luthier.training.capacity.shutil.disk_usage", lambda path: usage)
    with pytest.raises(CapacityError, match=r"needs .* of disk .* are free"):
        run(folder)
    assert not folder.checkpoints.exists()


def test_a_gated_model_needs_its_licence_accepted(tmp_path: Path, rows: Path) -> None:
    with pytest.raises(EulaError, match=r"Llama 2 .*--accept-eula"):
        run(lay_out(tmp_path / "run", "llama-2-7b", rows))


def test_an_unknown_setting_in_the_folder_is_refused(tmp_path: Path, model: Path, rows: Path) -> None:
    with pytest.raises(SettingError, match="did you mean 'learning_rate'"):
        run(lay_out(tmp_path / "run", model, rows, learning_rat=1))


def test_a_failure_is_one_line_an_exit_code_and_a_file(tmp_path: Path, model: Path) -> None:
    path = tmp_path / "rows" / "train.jsonl"
    path.parent.mkdir()
    path.write_text('{"instruction": "a", "context": "b", "response": "c"}\nnot json\n')
    folder = lay_out(tmp_path / "run", model, path.parent)
    process = start(folder)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "Traceback" not in output
    assert "train.jsonl:2" in folder.failure.read_text()


def test_an_unforeseen_failure_keeps_the_run(
    tmp_path: Path, model: Path, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = lay_out(tmp_path / "run", model, rows, max_steps=3)

    def broken(*arguments: object) -> None:
        raise OSError("the disk went away")

    with monkeypatch.context() as patch:
        patch.setattr(job_module, "write_report", broken)
        with pytest.raises(OSError, match="the disk went away"):
            run(folder)
    assert folder.metrics_lines.exists()
    assert "resuming after step 3" in run(folder, resume=True)
    assert folder.report.exists()


def test_a_stop_while_scoring_loses_nothing(
    tmp_path: Path, model: Path, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = lay_out(tmp_path / "run", model, rows, max_steps=2, score_rows=-1)

    @contextmanager
    def asked_at_once(console: object) -> Iterator[Callable[[], bool]]:
        yield lambda: True

    with monkeypatch.context() as patch:
        patch.setattr(job_module, "stop_requests", asked_at_once)
        with pytest.raises(Interrupted, match=f"resume with: luthier tune --resume --out .*{folder.root.name}"):
            run(folder)
    assert list(folder.scores.glob("*")) == []
    run(folder, resume=True)
    assert folder.report.exists()


def test_a_checkpoint_outlives_a_new_setting_but_not_a_changed_one(
    tmp_path: Path, model: Path, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def identity(**settings: Any) -> str:
        folder = lay_out(tmp_path / f"run-{len(list(tmp_path.iterdir()))}", model, rows, **settings)
        return resolve_job(folder, lambda text: None).fingerprint("data", "weights")

    before = identity()
    assert identity(weight_decay=0.5) != before
    later = dataclasses.replace(TABLE["seed"], name="a_later_setting", aliases=())
    monkeypatch.setitem(TABLE, "a_later_setting", later)
    assert identity() == before
