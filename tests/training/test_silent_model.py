"""Runs without text to compare: a model that learned to write nothing, and held-out rows without an answer."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
from rich.console import Console
from tiny_models import write_model
from training.job_folders import lay_out, run, start

from luthier.errors import DataError, NoGeneratedTextError, UserError
from luthier.evaluation.__main__ import show_comparison
from luthier.evaluation.evaluate import evaluate
from luthier.jobfolder import JobFolder

SILENT = {"parse_special_tokens": "True", "learning_rate": 0.05, "epoch": 4, "lora_dropout": 0, "score_rows": 12}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("silent") / "llama", "llama")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows whose completions begin with the end-of-text token, which `parse_special_tokens` makes one."""
    folder = tmp_path_factory.mktemp("silent") / "rows"
    folder.mkdir()
    lines = [{"instruction": f"question {row}", "context": "", "response": f"<|endoftext|>{row}"} for row in range(80)]
    (folder / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return folder


@pytest.fixture(scope="module")
def silent(tmp_path_factory: pytest.TempPathFactory, model: Path, rows: Path) -> JobFolder:
    folder = lay_out(tmp_path_factory.mktemp("silent") / "run", model, rows, **SILENT)
    process = start(folder)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1, output
    assert "Traceback" not in output
    assert output.splitlines()[-1].startswith("luthier: error: no report: the tuned model generated an empty text")
    return folder


def test_a_tuned_model_that_writes_nothing_has_no_report_and_keeps_its_artifact(silent: JobFolder) -> None:
    reason = silent.failure.read_text("utf-8")
    assert reason.startswith("no report: the tuned model generated an empty text for all 12 rows")
    assert f"the trained model is kept in {silent.artifact}" in reason
    assert len(reason.splitlines()) == 1
    with tarfile.open(silent.artifact) as archive:
        assert "adapter_model.safetensors" in archive.getnames()
    assert not silent.metrics.exists()
    assert not silent.report.exists()
    lines = (silent.scores / "tuned.validation.jsonl").read_text("utf-8").splitlines()
    predictions = [json.loads(line)["prediction"] for line in lines]
    assert len(predictions) - predictions.count(None) == 12
    assert not any(predictions)


def test_compare_says_why_there_is_no_report(silent: JobFolder) -> None:
    with pytest.raises(UserError, match=r"no metrics\.json; the run failed: no report: the tuned model generated an"):
        show_comparison({"run": str(silent.root)}, Console(file=io.StringIO()))


def test_evaluate_fails_alike_and_scores_losses_where_nothing_is_to_be_generated(silent: JobFolder, rows: Path) -> None:
    request = {"target": str(silent.root), "channels": {"training": str(rows)}, "device": "cpu", "out": None}
    with pytest.raises(NoGeneratedTextError, match="the model generated an empty text for all 10 rows"):
        evaluate(request | {"score_rows": 10}, Console(file=io.StringIO()))
    screen = io.StringIO()
    evaluate(request | {"score_rows": 0}, Console(file=screen, width=120))
    assert "loss" in screen.getvalue()
    assert "exact match" not in screen.getvalue()


def test_held_out_rows_without_an_answer_are_refused_before_training(tmp_path: Path, model: Path) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    turns = [("user", "question"), ("assistant", "good"), ("user", "question"), ("assistant", "")]
    row = {"messages": [{"role": role, "content": content} for role, content in turns]}
    lines = [row | {"id": number} for number in range(30)]
    (folder / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    job = lay_out(tmp_path / "run", model, folder, kind="chat")
    with pytest.raises(DataError, match="the references of all 4 rows scored by generation are empty"):
        run(job)
    assert not job.metrics_lines.exists()
    assert not any(job.scores.glob("*"))
    losses_only = lay_out(tmp_path / "losses", model, folder, kind="chat", score_rows=0)
    run(losses_only)
    assert losses_only.report.exists()
