"""Processes of the engine: their environment, their limits, and that none of them is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from luthier.launchers import process
from luthier.launchers.process import Launch, Running, Trace, environment, find, marked

# A parent with a child in a session of its own, which a signal to the parent's group does not reach.
FAMILY = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
print(child.pid, flush=True)
time.sleep(60)
"""


def launch(folder: Path, program: str, **limits: int) -> Running:
    folder.mkdir(exist_ok=True)
    command = (sys.executable, "-c", program)
    return Running(Launch(command, folder, folder / "logs" / "engine.log", environment("cpu"), limits))


def said(folder: Path) -> str:
    deadline = time.monotonic() + 10
    while not (folder / "logs" / "engine.log").read_text().endswith("\n"):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return (folder / "logs" / "engine.log").read_text()


def test_only_what_an_engine_needs_is_inherited() -> None:
    ours = {
        "PATH": "/bin", "HOME": "/root", "AWS_SECRET_ACCESS_KEY": "x", "LUTHIER_DATABASE": "x", "LUTHIER_MODELS": "/m",
        "LUTHIER_CACHE": "/c", "HF_HOME": "/h", "OMP_NUM_THREADS": "3", "PGPASSWORD": "x", "CUDA_VISIBLE_DEVICES": "7",
    }  # fmt: skip
    kept = environment("0+1", 2, ours)
    assert set(ours) & set(kept) == {"PATH", "HOME", "LUTHIER_MODELS", "LUTHIER_CACHE", "HF_HOME", "OMP_NUM_THREADS",
                                     "CUDA_VISIBLE_DEVICES"}  # fmt: skip
    assert kept["CUDA_VISIBLE_DEVICES"] == "0,1"
    assert kept["OMP_NUM_THREADS"] == "3"
    assert environment("cpu", 1, ours)["CUDA_VISIBLE_DEVICES"] == ""
    shared = environment("cpu", 2, {})
    assert int(shared["OMP_NUM_THREADS"]) == max(1, len(os.sched_getaffinity(0)) // 2)


def test_kill_ends_the_whole_family(tmp_path: Path) -> None:
    running = launch(tmp_path / "job", FAMILY)
    child = psutil.Process(int(said(tmp_path / "job")))
    assert {each.pid for each in marked(tmp_path)} == {running.trace.pid, child.pid}
    running.kill()
    assert running.poll() == -signal.SIGKILL
    assert not child.is_running()
    assert marked(tmp_path) == []


def test_a_group_whose_leader_died_is_found_and_ended(tmp_path: Path) -> None:
    running = launch(tmp_path / "job", FAMILY)
    child = psutil.Process(int(said(tmp_path / "job")))
    os.kill(running.trace.pid, signal.SIGKILL)
    while running.poll() is None:
        time.sleep(0.01)
    assert [each.pid for each in marked(tmp_path / "job")] == [child.pid]
    assert marked(tmp_path / "other") == []
    process.end(marked(tmp_path / "job"), grace=5)
    assert not child.is_running()


def test_a_process_is_found_again_by_number_and_start(tmp_path: Path) -> None:
    running = launch(tmp_path / "job", "import time; time.sleep(60)")
    found = find(running.trace)
    assert found is not None
    assert found.pid == running.trace.pid
    assert find(Trace(running.trace.pid, running.trace.created - 60)) is None
    running.kill()
    assert find(running.trace) is None


def test_limits_hold(tmp_path: Path) -> None:
    running = launch(tmp_path / "job", "import resource; print(resource.getrlimit(resource.RLIMIT_NOFILE)[0]); "
                     "print(resource.getrlimit(resource.RLIMIT_CORE)[0])", RLIMIT_NOFILE=99, RLIMIT_CORE=0)  # fmt: skip
    while running.poll() is None:
        time.sleep(0.01)
    assert said(tmp_path / "job").split() == ["99", "0"]
    assert running.poll() == 0


def test_asking_reaches_the_first_process_alone(tmp_path: Path) -> None:
    program = "import signal, time\nsignal.signal(15, lambda *_: (print('asked', flush=True), exit(130)))\n"
    running = launch(tmp_path / "job", program + "print('here', flush=True)\ntime.sleep(60)")
    said(tmp_path / "job")
    running.ask()
    while running.poll() is None:
        time.sleep(0.01)
    assert running.poll() == 130
    running.ask()  # gone: nothing happens


def test_processor_time_is_the_familys(tmp_path: Path) -> None:
    child = "import time\nend = time.process_time() + 0.3\nwhile time.process_time() < end: pass\n" \
            "print('done', flush=True)\ntime.sleep(60)"  # fmt: skip
    running = launch(tmp_path / "job", f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])")
    said(tmp_path / "job")
    assert running.effort().seconds >= 0.3
    running.kill()
    assert running.effort().seconds == 0


def test_nothing_of_a_strangers_is_marked() -> None:
    with subprocess.Popen(["sleep", "60"]) as stranger:
        assert stranger.pid not in [each.pid for each in marked(Path("/"))]
        stranger.kill()


def test_limits_that_cannot_be_set_are_refused() -> None:
    process.check_limits({"RLIMIT_AS": 1 << 30})
    with pytest.raises(ValueError, match="RLIMIT_MAGIC"):
        process.check_limits({"RLIMIT_MAGIC": 1})


def test_a_process_and_its_children_stand_still(tmp_path: Path) -> None:
    writes = "import itertools, os\nos.fork()\nfor n in itertools.count(): print(n, flush=True)"
    running = launch(tmp_path / "job", writes)
    log = tmp_path / "job" / "logs" / "engine.log"
    try:
        said(tmp_path / "job")
        with running.paused() as still:
            assert still
            size = log.stat().st_size
            time.sleep(0.1)
            assert log.stat().st_size == size
        deadline = time.monotonic() + 10
        while log.stat().st_size == size:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        running.kill()
    with running.paused() as still:
        assert still
