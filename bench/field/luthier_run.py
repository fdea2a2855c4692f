"""Luthier as a contender: a whole training job, held at each step.

The job is the one that `luthier tune` runs. The training loop reads `should_stop` once per step; here that waits for
the coordinator's word. `python -m bench.field.luthier_run CASE`, a JSON file.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from bench.field import matmul
from bench.field.line import Line, Stopwatch, peak_rss
from luthier.jobfolder import JobFolder
from luthier.jobspec import JobSpec
from luthier.training.job import run_job
from luthier.training.process_group import ProcessGroup


class SteppedProcessGroup(ProcessGroup):
    """The only rank of a run; it waits at the end of every step."""

    def __init__(self, line: Line, metrics: Path) -> None:
        super().__init__()
        self._line = line
        self._metrics = metrics
        self._watch = Stopwatch()
        self._before: dict[str, Any] = {}

    @property
    def should_stop(self) -> bool:
        found = json.loads(self._metrics.read_text("utf-8").splitlines()[-1])
        if self._before:
            spent = self._watch.read()
            counted = {name: found[name] - self._before[name] for name in ("tokens", "completion_tokens")}
            self._line.say(**spent, **counted, loss=found["loss"], rss=_memory())
        else:
            self._line.say(threads=torch.get_num_threads(), torch=torch.__version__)
        self._before = found
        while self._line.wait() == "peak":
            self._line.say(bf16=matmul.peak(torch.bfloat16), fp32=matmul.peak(torch.float32))
        self._watch.start()
        return False


def _memory() -> int:
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else peak_rss()


def hyperparameters(case: dict[str, Any]) -> dict[str, str]:
    """The job's settings: those of the peers where they have them, and nothing saved or validated on the way."""
    method = {"peft_type": "none"}
    if case["method"] == "lora":
        method = {"peft_type": "lora", "lora_r": "16", "lora_alpha": "32", "lora_dropout": "0",
                  "lora_target_modules": "all-linear"}  # fmt: skip
    return method | {
        "epoch": "1000", "per_device_train_batch_size": str(case["rows"]), "bf16": "True", "learning_rate": "2e-5",
        "validation_split_ratio": "0", "add_input_output_demarcation_key": "False", "logging_steps": "1",
        "logging_strategy": "steps", "save_strategy": "no", "evaluation_strategy": "no",
        "load_best_model_at_end": "False", "max_output_length": "512",
    }  # fmt: skip


def main() -> None:
    """Run until the coordinator is done."""
    line = Line()
    case = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    root = Path(case["work"]) / "luthier-run"
    shutil.rmtree(root, ignore_errors=True)
    folder = JobFolder(root)
    settings = hyperparameters(case) | case.get("settings", {})
    spec = JobSpec(model=case["model"], kind="instruction", score_rows=0, hyperparameters=settings)
    folder.create(spec, {"training": Path(case["channel"])})
    run_job(folder, False, Console(stderr=True), SteppedProcessGroup(line, folder.metrics_lines), locked=True)


if __name__ == "__main__":
    main()
