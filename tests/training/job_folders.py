"""Job folders for the tests of the engine: laid out as the command line lays them out, run as it runs them."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from luthier.jobfolder import JobFolder
from luthier.jobspec import JobSpec
from luthier.training.job import run_job

QUICK = {
    "epoch": 2, "per_device_train_batch_size": 3, "learning_rate": 0.01, "lora_dropout": 0.1, "logging_steps": 1,
    "validation_split_ratio": 0.2,
}  # fmt: skip


def lay_out(root: Path, model: Path | str, rows: Path, **settings: Any) -> JobFolder:
    """A job folder over `rows`; `settings` are hyperparameters on top of QUICK, or fields of JobSpec."""
    own = ("kind", "device", "max_truncated", "score_rows", "ranks")
    fields = {name: settings.pop(name) for name in own if name in settings}
    channels = settings.pop("channels", None) or {"training": rows}
    folder = JobFolder(root)
    hyperparameters = {name: str(value) for name, value in (QUICK | settings).items()}
    spec = JobSpec(model=str(model), hyperparameters=hyperparameters, **{"score_rows": 4, **fields})
    folder.create(spec, channels)
    return folder


def run(folder: JobFolder, resume: bool = False) -> str:
    """Run a job in this process; return what it printed."""
    screen = io.StringIO()
    run_job(folder, resume, Console(file=screen, width=120))
    return screen.getvalue()


def start(folder: JobFolder, *arguments: str) -> subprocess.Popen[str]:
    """Run a job as the command line does, in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "luthier.training", str(folder.root), *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def lines(folder: JobFolder) -> list[dict[str, Any]]:
    """metrics.jsonl without the clock."""
    found = [json.loads(line) for line in folder.metrics_lines.read_text("utf-8").splitlines()]
    for line in found:
        del line["time"]
    return found
