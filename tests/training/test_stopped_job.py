"""A job that is stopped for good writes what it has: the best checkpoint, or the last step, as its artifact."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from training.job_folders import lay_out, lines, run

from luthier.errors import Interrupted
from luthier.jobfolder import JobFolder
from luthier.training import job as job_module


def stop_when(folder: JobFolder, steps: int, resume: bool = False) -> str:
    """Run a job that is stopped once it has logged so many steps; return its reason."""

    @contextmanager
    def requests(console: object) -> Iterator[Callable[[], bool]]:
        yield lambda: folder.metrics_lines.exists() and sum("loss" in line for line in lines(folder)) >= steps

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job_module, "stop_requests", requests)
        with pytest.raises(Interrupted) as caught:
            run(folder, resume)
    return str(caught.value)


def read(path: Path) -> dict[str, Any]:
    stored: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return stored


def weights_of_step(folder: JobFolder, step: int) -> dict[str, torch.Tensor]:
    return load_file(folder.checkpoints / f"step-{step:06d}" / "weights.safetensors")


def assert_artifact_is(folder: JobFolder, step: int) -> None:
    stored, expected = load_file(folder.model / "adapter_model.safetensors"), weights_of_step(folder, step)
    assert folder.artifact.is_file()
    assert len(stored) == len(expected)
    for name, value in expected.items():
        assert torch.equal(stored[name.replace(".default.", ".")], value)


def test_the_last_step_becomes_the_artifact(base: Path, rows: Path, tmp_path: Path) -> None:
    folder = lay_out(tmp_path / "run", base, rows, evaluation_strategy="no")
    folder.finish_marker.touch()
    assert stop_when(folder, 3).startswith("stopped after step 3 of 16")
    assert_artifact_is(folder, 3)
    metrics = read(folder.metrics)
    assert (metrics["stopped"], metrics["steps"], metrics["tuned"]) == ("interrupted", 3, None)
    assert metrics["notes"] == ["the run was stopped after step 3: the artifact is the last step, and was not scored"]
    assert "The run was stopped after 3 steps" in folder.report.read_text("utf-8")


def test_the_best_checkpoint_becomes_the_artifact(base: Path, rows: Path, tmp_path: Path) -> None:
    folder = lay_out(tmp_path / "run", base, rows, evaluation_strategy="steps", eval_steps=2)
    folder.finish_marker.touch()
    stop_when(folder, 3)
    assert_artifact_is(folder, 2)
    assert read(folder.metrics)["best"]["step"] == 2


def test_the_last_step_becomes_the_artifact_where_the_best_is_not_asked_for(
    base: Path, rows: Path, tmp_path: Path
) -> None:
    settings = {"evaluation_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": "False"}
    folder = lay_out(tmp_path / "run", base, rows, **settings)
    folder.finish_marker.touch()
    stop_when(folder, 3)
    assert_artifact_is(folder, 3)
    assert read(folder.metrics)["notes"][0].endswith("the artifact is the last step, and was not scored")


def test_a_stop_that_will_be_resumed_writes_only_a_checkpoint(base: Path, rows: Path, tmp_path: Path) -> None:
    folder = lay_out(tmp_path / "run", base, rows, evaluation_strategy="no")
    stop_when(folder, 3)
    assert not folder.artifact.exists()
    assert not folder.metrics.exists()


def test_the_checkpoint_of_an_earlier_process_becomes_the_artifact(base: Path, rows: Path, tmp_path: Path) -> None:
    folder = lay_out(tmp_path / "run", base, rows, evaluation_strategy="no")
    stop_when(folder, 3)
    folder.finish_marker.touch()
    assert stop_when(folder, 1000, resume=True).startswith("stopped after step 3 of 16")
    assert_artifact_is(folder, 3)


def test_a_stop_while_the_trained_model_is_scored_keeps_the_model(base: Path, rows: Path, tmp_path: Path) -> None:
    folder = lay_out(tmp_path / "run", base, rows, max_steps=2, evaluation_strategy="no")
    folder.finish_marker.touch()
    with pytest.MonkeyPatch.context() as patch:
        score = job_module.Scorer.score

        def interrupted(self: Any, rows: Any, model: Any, name: str, split: str, again: bool = False) -> None:
            if name == "tuned":
                raise Interrupted("stopped while scoring")
            score(self, rows, model, name, split, again)

        patch.setattr(job_module.Scorer, "score", interrupted)
        with pytest.raises(Interrupted, match="while scoring"):
            run(folder)
    assert_artifact_is(folder, 2)
    assert read(folder.metrics)["stopped"] == "interrupted"
