"""A killed run, resumed, is the uninterrupted run: the same losses and the same weights, bit for bit."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from tiny_models import ARCHITECTURES, write_model, write_rows
from training.job_folders import lay_out, lines, start

from luthier.jobfolder import JobFolder

STEPS = 48
SETTINGS = {"max_steps": STEPS, "eval_steps": 8, "save_steps": 3, "early_stopping_patience": -1, "warmup_steps": 4}


def finish(folder: JobFolder, *arguments: str) -> str:
    process = start(folder, *arguments)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def kill_at(folder: JobFolder, step: int, *arguments: str) -> None:
    """Start or resume the job and SIGKILL it once `step` is logged."""
    process = start(folder, *arguments)
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        written = folder.metrics_lines.read_text("utf-8") if folder.metrics_lines.exists() else ""
        if f'"step": {step},' in written:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.002)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, "the run ended before it could be killed"


@pytest.mark.parametrize(
    ("architecture", "asked"),
    [pytest.param("llama", {}, id="llama-lora"),
     pytest.param("gpt_neox", {"peft_type": "none"}, id="gpt_neox-none", marks=pytest.mark.slow),
     pytest.param("gpt2", {}, id="gpt2-lora", marks=pytest.mark.slow),
     pytest.param("llama", {"peft_type": "none", "bf16": True, "optim": "adamw_bf16"}, id="llama-bf16",
                  marks=pytest.mark.slow)],
)  # fmt: skip
def test_killed_and_resumed_equals_uninterrupted(tmp_path: Path, architecture: str, asked: dict[str, Any]) -> None:
    model = write_model(tmp_path / "model", architecture, dropout=0.1)
    rows = write_rows(tmp_path / "rows" / "train.jsonl", 40).parent
    whole = lay_out(tmp_path / "whole", model, rows, **asked, **SETTINGS)
    finish(whole)

    broken = lay_out(tmp_path / "broken", model, rows, **asked, **SETTINGS)
    moments = random.Random(architecture)
    kill_at(broken, moments.randrange(5, 20))
    kill_at(broken, moments.randrange(24, STEPS - 4), "--resume")
    output = finish(broken, "--resume")

    assert "resuming after step" in output
    assert lines(broken) == lines(whole)
    name = "model.safetensors" if "peft_type" in asked else "adapter_model.safetensors"
    resumed, expected = load_file(broken.model / name), load_file(whole.model / name)
    assert resumed.keys() == expected.keys()
    assert all(resumed[key].equal(expected[key]) for key in expected)


def test_ctrl_c_writes_a_checkpoint_and_says_how_to_go_on(tmp_path: Path) -> None:
    assert set(ARCHITECTURES) >= {"llama"}
    model = write_model(tmp_path / "model", "llama")
    rows = write_rows(tmp_path / "rows" / "train.jsonl", 40).parent
    folder = lay_out(tmp_path / "run", model, rows, max_steps=100_000, save_strategy="no", evaluation_strategy="no")
    process = start(folder)
    while process.poll() is None and '"step": 5,' not in (
        folder.metrics_lines.read_text("utf-8") if folder.metrics_lines.exists() else ""
    ):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    assert f"luthier tune --resume --out {folder.root}" in output
    assert "Traceback" not in output
    last = lines(folder)[-1]["step"]
    assert (folder.checkpoints / f"step-{last:06d}").is_dir()
