"""A program kept running: started again when it ends, later each time, and ended with us."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from luthier.service import child as child_module
from luthier.service.child import ChildProcess


def launcher(code: str, started: list[subprocess.Popen[bytes]]) -> subprocess.Popen[bytes]:
    started.append(subprocess.Popen([sys.executable, "-S", "-c", code]))
    return started[-1]


def wait_for(started: list[subprocess.Popen[bytes]], count: int) -> None:
    deadline = time.monotonic() + 30
    while len(started) < count and time.monotonic() < deadline:
        time.sleep(0.01)


def test_it_is_started_again_and_waits_longer_each_time(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(child_module, "FIRST_DELAY", 0.02)
    started: list[subprocess.Popen[bytes]] = []
    child = ChildProcess("program", lambda: launcher("raise SystemExit(3)", started))
    child.start()
    wait_for(started, 3)
    child.stop(10)
    said = [record.getMessage() for record in caplog.records]
    assert "program ended with exit code 3; restarting it in 0.04 seconds" in said
    assert "program ended with exit code 3; restarting it in 0.08 seconds" in said


def test_stop_ends_it_and_it_stays_so() -> None:
    started: list[subprocess.Popen[bytes]] = []
    child = ChildProcess("program", lambda: launcher("import time; time.sleep(60)", started))
    child.start()
    wait_for(started, 1)
    assert child.pid == started[0].pid
    child.stop(10)
    assert started[0].poll() is not None
    assert len(started) == 1


def test_one_that_does_not_listen_is_killed(caplog: pytest.LogCaptureFixture) -> None:
    code = "import signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-S", "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout:
        child = ChildProcess("program", lambda: process)
        child.start()
        process.stdout.readline()
        child.stop(0.1)
    assert process.poll() == -9
    assert "did not end within 0.1 seconds; killing it" in caplog.text


def test_one_that_cannot_be_started_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(child_module, "FIRST_DELAY", 0.02)
    tries: list[int] = []

    def launch() -> subprocess.Popen[bytes]:
        tries.append(1)
        raise FileNotFoundError("python")

    child = ChildProcess("program", launch)
    child.start()
    deadline = time.monotonic() + 30
    while len(tries) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    child.stop(1)
    assert len(tries) >= 2
    assert "program could not be started" in caplog.text
