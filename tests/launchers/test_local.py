"""The local launcher: the contract, and what only processes of this machine have."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from launchers.launcher_contract import FAMILY, LauncherContract, is_growing, spec, wait

from luthier.errors import UserError
from luthier.launchers.launcher import ExitStatus, LaunchSpec
from luthier.launchers.local import LocalLauncher, environment, find_process, find_processes


def python_launcher() -> LocalLauncher:
    return LocalLauncher({"training": (sys.executable,), "serving": (sys.executable,)})


class TestLocalLauncher(LauncherContract):
    factory = "launchers.test_local:python_launcher"

    def test_local_runs_are_paused(self, launcher: LocalLauncher, tmp_path: Path) -> None:
        handle = launcher.start(spec(tmp_path / "job", "while True: print(1, flush=True)"))
        with launcher.paused(handle) as is_paused:
            assert is_paused
        launcher.kill(handle)
        with launcher.paused(handle) as is_paused:
            assert is_paused


@pytest.fixture
def launcher() -> LocalLauncher:
    return python_launcher()


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


def test_kill_ends_the_whole_family(launcher: LocalLauncher, tmp_path: Path) -> None:
    handle = launcher.start(spec(tmp_path / "job", FAMILY))
    wait((tmp_path / "job" / "ticks").exists)
    (child,) = psutil.Process(handle["pid"]).children()
    assert {process.pid for process in find_processes(tmp_path)} == {handle["pid"], child.pid}
    launcher.kill(handle)
    assert launcher.poll(handle) == ExitStatus(signal="SIGKILL")
    assert not child.is_running()
    assert find_processes(tmp_path) == []


def test_a_group_whose_leader_died_is_found_and_ended(launcher: LocalLauncher, tmp_path: Path) -> None:
    handle = launcher.start(spec(tmp_path / "job", FAMILY))
    wait((tmp_path / "job" / "ticks").exists)
    (child,) = psutil.Process(handle["pid"]).children()
    os.kill(handle["pid"], signal.SIGKILL)
    wait(lambda: launcher.poll(handle))
    assert [process.pid for process in find_processes(tmp_path / "job")] == [child.pid]
    assert find_processes(tmp_path / "other") == []
    (leftover,) = launcher.leftovers(tmp_path, [])
    assert leftover["pid"] == child.pid
    assert launcher.leftovers(tmp_path, [handle]) == [leftover]
    launcher.request_stop(leftover)
    wait(lambda: launcher.poll(leftover))
    assert not is_growing(launcher, handle, tmp_path / "job" / "ticks")


def test_a_process_is_found_again_by_number_and_start(launcher: LocalLauncher, tmp_path: Path) -> None:
    handle = launcher.start(spec(tmp_path / "job", "import time; time.sleep(60)"))
    process = find_process(handle)
    assert process is not None
    assert process.pid == handle["pid"]
    later = {**handle, "created": handle["created"] - 60}
    assert find_process(later) is None
    assert python_launcher().poll(later) == ExitStatus()
    launcher.kill(handle)
    assert find_process(handle) is None


def test_a_handle_of_version_0_3_is_understood(launcher: LocalLauncher, tmp_path: Path) -> None:
    handle = launcher.start(spec(tmp_path / "job", "import time; time.sleep(60)"))
    old = {"pid": handle["pid"], "created": handle["created"]}
    successor = python_launcher()
    assert successor.poll(old) is None
    successor.collect(old)
    successor.kill(old)
    assert successor.poll(old) is not None
    launcher.kill(handle)


def test_a_stop_reaches_the_first_process_alone(launcher: LocalLauncher, tmp_path: Path) -> None:
    child = "import signal, time\nsignal.signal(15, lambda *_: print('told', flush=True))\ntime.sleep(60)"
    program = (
        "import signal, subprocess, sys, time\nsignal.signal(15, lambda *_: exit(130))\n"
        f"subprocess.Popen([sys.executable, '-c', {child!r}])\nprint('ready', flush=True)\ntime.sleep(60)"
    )
    job = spec(tmp_path / "job", program)
    handle = launcher.start(job)
    wait(lambda: "ready" in job.log.read_text())
    launcher.request_stop(handle)
    assert wait(lambda: launcher.poll(handle)) == ExitStatus(130)
    assert "told" not in job.log.read_text()
    launcher.kill(handle)


def test_nothing_of_a_strangers_is_found() -> None:
    with subprocess.Popen(["sleep", "60"]) as stranger:
        assert stranger.pid not in [process.pid for process in find_processes(Path("/"))]
        stranger.kill()


def test_a_serving_program_gets_its_address(launcher: LocalLauncher, tmp_path: Path) -> None:
    folder = tmp_path / "v0"
    folder.mkdir()
    program = tmp_path / "server.py"
    program.write_text(
        "import socket, sys, time\nsocket.socket(1).bind(sys.argv[2])\nprint(sys.argv[1:])\ntime.sleep(60)"
    )
    serving = LocalLauncher({"serving": (sys.executable, str(program))})
    job = LaunchSpec(program="serving", arguments=["model"], folder=folder)
    address = Path(serving.address(folder))
    address.touch()  # of a process that crashed
    handle = serving.start(job)
    wait(lambda: job.log.read_text())
    assert job.log.read_text().strip() == str(["--socket", str(address), "model"])
    assert stat.S_ISSOCK(address.stat().st_mode)
    serving.kill(handle)
    assert not address.exists()


def test_a_long_home_has_its_sockets_elsewhere(
    launcher: LocalLauncher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("luthier.launchers.local.tempfile.gettempdir", lambda: str(tmp_path))
    address = launcher.address(tmp_path / ("x" * 100))
    assert Path(address).parent == tmp_path / f"luthier-{os.getuid()}"
    Path(address).parent.chmod(0o755)
    with pytest.raises(UserError, match="not a folder that only this user can access"):
        launcher.address(tmp_path / ("x" * 100))
