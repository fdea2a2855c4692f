"""Ranks as the command line starts them: who is waited for, what is said when one goes, and who goes with whom."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from tiny_models import write_model, write_rows
from training.job_folders import lay_out, lines, start

from luthier.errors import Interrupted, LuthierError, SettingError
from luthier.jobfolder import JobFolder
from luthier.jobspec import JobSpec
from luthier.training.__main__ import main
from luthier.training.launch import RankFailure, _raise_cause, _rank_failure, resolve_world_size

LONG = {"max_steps": 100_000, "save_strategy": "steps", "save_steps": 5, "evaluation_strategy": "no", "score_rows": 0}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "llama", "llama")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows") / "train.jsonl", 40).parent


def step_of(folder: JobFolder) -> int:
    return max((line["step"] for line in lines(folder)), default=0) if folder.metrics_lines.exists() else 0


def until(process: subprocess.Popen[str], folder: JobFolder, step: int) -> None:
    """Wait until the run has logged `step`."""
    deadline = time.monotonic() + 240
    while process.poll() is None and time.monotonic() < deadline and step_of(folder) < step:
        time.sleep(0.05)
    assert process.poll() is None, process.communicate()[0]


def ranks_of(folder: JobFolder) -> list[psutil.Process]:
    """The processes of the ranks of a job, in their order."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if str(folder.root) in process.cmdline() and "LUTHIER_LAUNCH_FOLDER" in process.environ():
                found.append((int(process.environ()["RANK"]), process))
    return [process for _, process in sorted(found, key=lambda pair: pair[0])]


def errors(output: str) -> list[str]:
    return [line for line in output.splitlines() if line.startswith("luthier:")]


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path: Path, model: Path, rows: Path) -> None:
    folder = lay_out(tmp_path / "run", model, rows, ranks=2, enable_fsdp=True, **LONG | {"save_strategy": "no"})
    process = start(folder)
    until(process, folder, 3)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    last = step_of(folder)
    assert errors(output) == [
        f"luthier: error: stopped after step {last} of 100000; the checkpoint is written; resume with: "
        f"luthier tune --resume --out {folder.root}"
    ]
    assert (folder.checkpoints / f"step-{last:06d}").is_dir()
    assert "Traceback" not in output
    assert (folder.output / "failure").read_text().startswith("stopped after step")


def launched(folder: JobFolder, step: int = 0, act: Callable[[psutil.Process], None] | None = None) -> None:
    """Launch the ranks from this process; once `step` is logged, do something to the last of them."""

    def watch() -> None:
        deadline = time.monotonic() + 240
        while step_of(folder) < step and time.monotonic() < deadline:
            time.sleep(0.05)
        if act:
            act(ranks_of(folder)[-1])

    watcher = threading.Thread(target=watch)
    if act:
        watcher.start()
    try:
        main([str(folder.root)])
    finally:
        if act:
            watcher.join()
    raise AssertionError("the job came to an end")


def test_a_killed_rank_ends_the_job_in_one_line(tmp_path: Path, model: Path, rows: Path) -> None:
    folder = lay_out(tmp_path / "run", model, rows, ranks=2, **LONG)
    before = dict(os.environ)
    expected = (
        "^rank 1 was killed .SIGKILL; out of memory.*; the last checkpoint is intact; --resume continues from it$"
    )
    with pytest.raises(LuthierError, match=expected) as raised:
        launched(folder, step=6, act=psutil.Process.kill)
    assert raised.value.exit_code == 1
    assert list(folder.checkpoints.glob("step-*"))
    assert ranks_of(folder) == []
    assert dict(os.environ) == before
    assert (folder.output / "failure").read_text().startswith("rank 1 was killed")


def test_a_fault_of_the_users_is_one_line(
    tmp_path: Path, model: Path, rows: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = lay_out(tmp_path / "run", model, rows, ranks=2, lora_target_modules="q_porj", **LONG)
    with pytest.raises(LuthierError, match=r"^lora_target_modules=q_porj: .* did you mean 'q_proj'") as raised:
        launched(folder)
    assert raised.value.exit_code == 2
    assert "did you mean 'q_proj'" in (folder.output / "failure").read_text()
    said = capfd.readouterr()
    assert said.out.count("2 ranks, each with a copy of the model") == 1
    assert said.err == ""


@pytest.mark.slow
def test_a_rank_that_hangs_is_not_waited_for_for_ever(
    tmp_path: Path, model: Path, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LUTHIER_RANK_TIMEOUT", "5")
    folder = lay_out(tmp_path / "run", model, rows, ranks=2, **LONG)
    with pytest.raises(LuthierError, match=r"^rank 0 waited 5 s for another rank and gave up .*LUTHIER_RANK_TIMEOUT"):
        launched(folder, step=2, act=psutil.Process.suspend)
    assert ranks_of(folder) == []


@pytest.mark.slow
def test_ranks_go_with_their_launcher(tmp_path: Path, model: Path, rows: Path) -> None:
    folder = lay_out(tmp_path / "run", model, rows, ranks=2, **LONG)
    process = start(folder)
    until(process, folder, 6)
    ranks = ranks_of(folder)
    assert len(ranks) == 2
    process.kill()
    process.communicate(timeout=60)
    assert psutil.wait_procs(ranks, timeout=20)[1] == []

    # What it left goes on, on one rank; a second Ctrl-C does not wait for the step.
    process = start(folder, "--resume", "--ranks", "1")
    until(process, folder, step_of(folder) + 2)
    assert ranks_of(folder) == []
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert (process.returncode, "resuming after step" in output) == (130, True), output


@pytest.mark.slow
def test_ctrl_c_before_there_is_anything_to_save_ends_at_once(tmp_path: Path, model: Path, rows: Path) -> None:
    folder = lay_out(tmp_path / "run", model, rows, ranks=2, **LONG)
    process = start(folder)
    while len(ranks_of(folder)) < 2 and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert (process.returncode, errors(output)) == (130, ["luthier: stopped"]), output
    assert ranks_of(folder) == []


@pytest.mark.slow
def test_a_second_ctrl_c_does_not_wait(tmp_path: Path, model: Path, rows: Path) -> None:
    folder = lay_out(tmp_path / "run", model, rows, ranks=2, **LONG | {"save_strategy": "no"})
    process = start(folder)
    until(process, folder, 2)
    ranks_of(folder)[1].suspend()
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(1)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert errors(output) == ["luthier: stopped"]
    assert ranks_of(folder) == []


@pytest.mark.slow
def test_somebody_elses_torchrun(tmp_path: Path, model: Path, rows: Path) -> None:
    folder = lay_out(tmp_path / "run", model, rows, max_steps=3, enable_fsdp=True)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, "-m", "luthier.training", str(folder.root)], capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("2 ranks, each tensor sharded over them") == 1
    assert folder.artifact.exists()


# How many


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    def with_devices(gpus: int, mps: bool = False) -> None:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    return with_devices


@pytest.mark.parametrize(
    ("gpus", "device", "stored", "asked", "expected"),
    [
        (0, "auto", 0, 0, 1), (1, "auto", 0, 0, 1), (4, "auto", 0, 0, 4), (4, "cuda", 0, 0, 4), (4, "cpu", 0, 0, 1),
        (4, "cuda:1", 0, 0, 1), (4, "auto", 2, 0, 2), (4, "auto", 2, 3, 3), (4, "auto", 1, 0, 1), (0, "cpu", 8, 0, 8),
        (4, "cpu", 8, 0, 8), (4, "cuda:1", 1, 0, 1),
    ],
)  # fmt: skip
def test_ranks_wanted(machine: Any, gpus: int, device: str, stored: int, asked: int, expected: int) -> None:
    machine(gpus)
    assert resolve_world_size(JobSpec(model="m", device=device, ranks=stored), asked) == expected


@pytest.mark.parametrize(
    ("gpus", "mps", "device", "expected"),
    [
        (2, False, "auto", "2 GPUs are visible"), (2, False, "cuda", "2 GPUs are visible"),
        (2, False, "cuda:0", "one GPU runs one rank"), (0, True, "auto", "Apple's GPU runs one rank"),
        (0, True, "mps", "Apple's GPU runs one rank"),
    ],
)  # fmt: skip
def test_ranks_without_devices_are_refused(machine: Any, gpus: int, mps: bool, device: str, expected: str) -> None:
    machine(gpus, mps)
    with pytest.raises(SettingError, match=f"--ranks 3.*{expected}"):
        resolve_world_size(JobSpec(model="m", device=device), 3)


# What ended them

LOST = RuntimeError("[pair.cc:553] Connection closed by peer [127.0.0.1]:1")
LATE = RuntimeError("[unbound_buffer.cc:81] Timed out waiting 5000ms for recv operation to complete")


@pytest.mark.parametrize(
    ("endings", "codes", "code", "expected"),
    [
        ({0: LOST, 1: ValueError("odd")}, {0: 1, 1: 1}, 1, r"rank 1: internal error: ValueError: odd \(LUTHIER"),
        ({0: LOST, 1: SettingError("a=b")}, {0: 1, 1: 1}, 2, "^a=b$"),
        ({0: LOST}, {0: 1, 1: -9}, 1, "^rank 1 was killed .SIGKILL; out of memory"),
        ({0: LOST}, {0: 1, 1: -11}, 1, "^rank 1 was killed .SIGSEGV.;"),
        ({1: LATE}, {0: -15, 1: 1}, 1, "^rank 1 waited 7 s for another rank and gave up"),
        ({1: LOST}, {0: -15, 1: 1}, 1, "^rank 1 lost its connection"),
        ({0: Interrupted("stopped"), 1: Interrupted("")}, {}, 130, "^stopped$"),
        ({}, {1: 3}, 1, "^rank 1 exited with code 3"),
    ],
)  # fmt: skip
def test_the_cause_is_told_from_what_follows(
    endings: dict[int, Exception], codes: dict[int, int], code: int, expected: str
) -> None:
    reported: dict[int, RankFailure] = {rank: _rank_failure(rank, error) for rank, error in endings.items()}
    with pytest.raises(LuthierError, match=expected) as raised:
        _raise_cause(reported, codes, 7.0)
    assert raised.value.exit_code == code
    assert isinstance(raised.value, Interrupted) == (code == 130)


def test_no_cause_is_none() -> None:
    _raise_cause({}, {}, 7.0)


def test_the_job_says_how_many_ranks_it_has(tmp_path: Path, model: Path, rows: Path) -> None:
    folder = lay_out(tmp_path / "run", model, rows, ranks=2)
    assert folder.read_spec().ranks == 2
    path = folder.config / "job.json"
    older = {name: value for name, value in json.loads(path.read_text()).items() if name != "ranks"}
    path.write_text(json.dumps(older))
    assert folder.read_spec().ranks == 0


@pytest.fixture(autouse=True)
def few_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))
