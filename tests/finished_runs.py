"""Finished runs of small models, each trained once per session, with the trained model's logits before saving."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from tiny_models import ARCHITECTURES, write_model, write_rows
from torch import Tensor

from luthier.jobfolder import JobFolder
from luthier.jobspec import JobSpec
from luthier.training import job
from luthier.weights.artifact import save_artifact

METHODS = ("lora", "none")
EVERY_RUN = [(architecture, method) for architecture in ARCHITECTURES for method in METHODS]
PROBE = torch.arange(5, 45).reshape(2, 20)
SETTINGS = {"max_steps": "3", "learning_rate": "0.05", "lora_r": "4", "seed": "3", "train_data_split_seed": "7"}


@dataclass(frozen=True, slots=True)
class FinishedRun:
    """A run's folder, its base, its rows, and the trained model's logits of PROBE, taken in the training process."""

    folder: JobFolder
    base: Path
    rows: Path
    logits: Tensor


class FinishedRuns:
    """Trains each run at most once; all share the folder `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._runs: dict[str, FinishedRun] = {}

    def get(self, architecture: str = "llama", method: str = "lora") -> FinishedRun:
        """The run of an architecture by peft_type `method`, on instruction rows without a template.json."""
        name = f"{architecture}-{method}"
        if name not in self._runs:
            rows = self.root / "rows" / "train.jsonl"
            if not rows.exists():
                write_rows(rows, 24)
            self._runs[name] = self.train(name, self.base(architecture), rows.parent, peft_type=method)
        return self._runs[name]

    def base(self, architecture: str) -> Path:
        """The base model's folder."""
        folder = self.root / "bases" / architecture
        return folder if folder.exists() else write_model(folder, architecture)

    def train(self, name: str, base: Path, rows: Path, kind: str = "auto", **settings: str) -> FinishedRun:
        """Run one job to its end."""
        folder = JobFolder(self.root / "runs" / name)
        spec = JobSpec(model=str(base), kind=kind, device="cpu", score_rows=2, hyperparameters=SETTINGS | settings)
        folder.create(spec, {"training": rows})
        logits: list[Tensor] = []

        def listen(model: Any, *rest: Any) -> None:
            with torch.no_grad():
                logits.append(model.network(input_ids=PROBE, use_cache=False).logits)
            save_artifact(model, *rest)

        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("LUTHIER_CACHE", str(self.root / "cache"))
            patch.setattr(job, "save_artifact", listen)
            job.run_job(folder, False, Console(file=io.StringIO(), width=120))
        return FinishedRun(folder, base, rows, logits[0])
