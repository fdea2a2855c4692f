"""A laboratory for hyperparameters: jobs on one tiny model, each kept with what the engine did while it ran."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import write_model, write_rows
from torch import Tensor
from training.job_folders import lay_out, lines, run

from luthier.jobfolder import JobFolder
from luthier.layers import decoder
from luthier.layers.batch import Batch
from luthier.layers.row_attention import AttentionSpec, row_attention
from luthier.weights.model import Model

PLAIN = {"lora_dropout": 0.0, "score_rows": 0, "per_device_train_batch_size": 4, "lr_scheduler_type": "constant"}
TOLERANCE = 2e-5  # between losses of the same rows, otherwise laid out
SPLITS = ("train", "validation", "test")
TEMPLATE = {"prompt": "{instruction} {context}", "completion": " {response}"}


@dataclass
class FinishedJob:
    """A finished job: its folder, what it printed, and what the engine did while it ran."""

    folder: JobFolder
    screen: str
    trained: list[Batch] = field(default_factory=list)
    scored: list[Batch] = field(default_factory=list)
    attention_calls: int = 0

    @property
    def steps(self) -> list[dict[str, Any]]:
        return [line for line in lines(self.folder) if "loss" in line]

    @property
    def validations(self) -> list[dict[str, Any]]:
        return [line for line in lines(self.folder) if "eval_loss" in line]

    @property
    def losses(self) -> list[float]:
        return [line["loss"] for line in self.steps]

    @property
    def rates(self) -> list[float]:
        return [round(line["learning_rate"], 9) for line in self.steps]

    @property
    def metrics(self) -> dict[str, Any]:
        return self.read("metrics.json")

    @property
    def record(self) -> dict[str, Any]:
        return self.read("run.json")

    @property
    def counts(self) -> dict[str, int]:
        counts: dict[str, int] = self.record["data"]["counts"]
        return counts

    @property
    def split(self) -> dict[str, list[str]]:
        return {split: rows for split, rows in self.read("split.json").items() if split in SPLITS}

    @property
    def checkpoints(self) -> list[int]:
        return sorted(int(path.name[5:]) for path in self.folder.checkpoints.glob("step-*"))

    @property
    def weights(self) -> dict[str, Tensor]:
        return load_file(next(self.folder.model.glob("*.safetensors")))

    @property
    def size(self) -> float:
        """The norm of the trained weights; of an adapter, of its B matrices, which start from zero."""
        squares = (float(value.square().sum()) for name, value in self.weights.items() if "lora_A" not in name)
        return math.sqrt(sum(squares))

    def read(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder.root / name).read_text("utf-8"))
        return found


class TrainingHarness:
    """Runs jobs on a tiny Llama, each combination of rows and settings once a session."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.model = write_model(root / "llama", "llama")
        self._done: dict[str, FinishedJob] = {}
        self._count = itertools.count()
        write_rows(self.rows_folder("plain") / "rows.jsonl", 25)
        (self.rows_folder("plain") / "template.json").write_text(json.dumps(TEMPLATE))

    def rows_folder(self, name: str) -> Path:
        folder = self.root / "rows" / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def write(self, name: str, rows: list[dict[str, Any]], template: dict[str, str] | None = None) -> str:
        """Rows of the test's own; return their name for `run`."""
        folder = self.rows_folder(name)
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        if template:
            (folder / "template.json").write_text(json.dumps(template))
        return name

    def run(self, rows: str = "plain", /, **settings: Any) -> FinishedJob:
        """The job over `rows` with `settings` on top of PLAIN and jobs.QUICK: 20 training rows, 5 steps an epoch."""
        key = json.dumps([rows, settings], sort_keys=True)
        if key not in self._done:
            folder = self.lay_out(rows, **settings)
            with pytest.MonkeyPatch.context() as patch:
                done = FinishedJob(folder, "")
                _listen(patch, done)
                done.screen = run(folder)
            self._done[key] = done
        return self._done[key]

    def lay_out(self, rows: str = "plain", /, **settings: Any) -> JobFolder:
        """A job folder that was not run."""
        place = self.root / f"run-{next(self._count)}"
        return lay_out(place, self.model, self.rows_folder(rows), **PLAIN | settings)


def differ(one: FinishedJob, other: FinishedJob) -> bool:
    """Whether two runs ended with other weights."""
    return any(not torch.equal(value, other.weights[name]) for name, value in one.weights.items())


Check = Callable[[TrainingHarness], None]


class HyperparameterChecks(dict[str, Check]):
    """What shows the effect of a hyperparameter, by its name."""

    def of(self, *names: str) -> Callable[[Check], Check]:
        """Register the decorated function as what shows the effect of `names`."""

        def register(function: Check) -> Check:
            for name in names:
                assert name not in self
                self[name] = function
            return function

        return register


def _listen(patch: pytest.MonkeyPatch, done: FinishedJob) -> None:
    """Note each batch the model sees, and each call of an attention layer in training."""
    loss, scores = Model.loss, Model.scores
    plain = torch.nn.functional.scaled_dot_product_attention

    def heard_loss(model: Model, batch: Batch, smoothing: float = 0.0) -> Tensor:
        done.trained.append(batch)
        return loss(model, batch, smoothing)

    def heard_scores(model: Model, batch: Batch) -> Any:
        done.scored.append(batch)
        return scores(model, batch)

    def heard_attention(*arguments: Any, **options: Any) -> Tensor:
        done.attention_calls += 1
        return plain(*arguments, **options)

    def heard_rows(query: Tensor, key: Tensor, value: Tensor, rows: AttentionSpec) -> Tensor:
        done.attention_calls += len(rows.lengths)
        return row_attention(query, key, value, rows)

    patch.setattr(Model, "loss", heard_loss)
    patch.setattr(Model, "scores", heard_scores)
    patch.setattr(torch.nn.functional, "scaled_dot_product_attention", heard_attention)
    patch.setattr(decoder, "attend_rows", heard_rows)
