"""What every launcher has to do, as tests: a test class that inherits from LauncherContract runs it through them.

Its program "training" is the Python interpreter. Runs are observed through their folder, after `collect`, so that they
may run elsewhere.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from luthier.launchers.launcher import ExitStatus, Launcher, LaunchSpec, RunHandle

# A parent with a child in a session of its own, which a signal to the parent's process group does not reach.
FAMILY = """
import subprocess, sys, time
ticks = "import time\\nwhile True: open('ticks', 'a').write('.'); time.sleep(0.02)"
subprocess.Popen([sys.executable, "-c", ticks], start_new_session=True)
time.sleep(60)
"""
CHECKPOINT = """
import signal, time
def stop(*_):
    open("checkpoint", "w").write("saved")
    raise SystemExit(130)
signal.signal(signal.SIGTERM, stop)
print("ready", flush=True)
time.sleep(60)
"""
STARTER = """
import json, sys
from pathlib import Path
from {module} import {name}
from launchers.launcher_contract import FAMILY, spec
print(json.dumps({name}().start(spec(Path(sys.argv[1]), FAMILY))), flush=True)
sys.stdin.read()
"""


def spec(folder: Path, program: str, **options: Any) -> LaunchSpec:
    folder.mkdir(parents=True, exist_ok=True)
    return LaunchSpec(program="training", arguments=["-c", program], folder=folder, **options)


def wait(condition: Callable[[], Any], seconds: float = 20) -> Any:
    """The first true value of `condition`."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.01)
    return value


def read(launcher: Launcher, handle: RunHandle, path: Path) -> str:
    """What the run has written to a file so far."""
    launcher.collect(handle)
    return path.read_text() if path.exists() else ""


def is_growing(launcher: Launcher, handle: RunHandle, path: Path) -> bool:
    before = read(launcher, handle, path)
    time.sleep(0.3)
    return len(read(launcher, handle, path)) > len(before)


class LauncherContract:
    """The tests; `factory`, "module:name", makes a launcher, in this process or another one."""

    factory: str

    @pytest.fixture
    def launcher(self) -> Launcher:
        module, _, name = self.factory.partition(":")
        launcher: Launcher = getattr(importlib.import_module(module), name)()
        return launcher

    @pytest.mark.parametrize(
        ("program", "status"),
        [
            ("print('done')", ExitStatus(0)),
            ("raise SystemExit(2)", ExitStatus(2)),
            ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", ExitStatus(signal="SIGSEGV")),
        ],
    )
    def test_how_a_run_ended(self, launcher: Launcher, tmp_path: Path, program: str, status: ExitStatus) -> None:
        handle = launcher.start(spec(tmp_path / "job", program))
        assert wait(lambda: launcher.poll(handle)) == status
        launcher.request_stop(handle)  # it has ended: nothing happens
        launcher.kill(handle)
        assert launcher.poll(handle) == status

    def test_output_is_appended_to_the_log(self, launcher: Launcher, tmp_path: Path) -> None:
        job = spec(tmp_path / "job", "import os; print(os.getcwd()); open('written', 'w').write('x')")
        for count in (1, 2):
            handle = launcher.start(job)
            wait(lambda: launcher.poll(handle))  # noqa: B023
            for _ in range(2):  # collecting is idempotent
                launcher.collect(handle)
            assert job.log.read_text().splitlines()[-1].endswith("/job")
            assert len(job.log.read_text().splitlines()) == count
            assert (job.folder / "written").read_text() == "x"

    def test_a_stop_leads_to_a_checkpoint(self, launcher: Launcher, tmp_path: Path) -> None:
        job = spec(tmp_path / "job", CHECKPOINT)
        handle = launcher.start(job)
        wait(lambda: "ready" in read(launcher, handle, job.log))
        assert launcher.poll(handle) is None
        launcher.request_stop(handle)
        assert wait(lambda: launcher.poll(handle)) == ExitStatus(130)
        launcher.collect(handle)
        assert (job.folder / "checkpoint").read_text() == "saved"

    def test_kill_leaves_nothing_running(self, launcher: Launcher, tmp_path: Path) -> None:
        job = spec(tmp_path / "job", FAMILY)
        handle = launcher.start(job)
        wait(lambda: read(launcher, handle, job.folder / "ticks"))
        launcher.kill(handle)
        assert launcher.poll(handle) == ExitStatus(signal="SIGKILL")
        assert not is_growing(launcher, handle, job.folder / "ticks")
        assert launcher.leftovers(tmp_path, [handle]) == []
        launcher.kill(handle)

    def test_kill_ends_what_outlived_the_run(self, launcher: Launcher, tmp_path: Path) -> None:
        job = spec(tmp_path / "job", FAMILY.replace("time.sleep(60)", "time.sleep(1)"))
        handle = launcher.start(job)
        assert wait(lambda: launcher.poll(handle)) == ExitStatus(0)
        assert is_growing(launcher, handle, job.folder / "ticks")
        launcher.kill(handle)
        assert not is_growing(launcher, handle, job.folder / "ticks")

    def test_leftovers_of_a_killed_starter_are_found_and_ended(self, launcher: Launcher, tmp_path: Path) -> None:
        job = tmp_path / "jobs" / "job"
        module, _, name = self.factory.partition(":")
        command = [sys.executable, "-c", STARTER.format(module=module, name=name), str(job)]
        environment, pipe = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}, subprocess.PIPE
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment) as starter:
            assert starter.stdout is not None
            handle: RunHandle = json.loads(starter.stdout.readline())
            wait(lambda: read(launcher, handle, job / "ticks"))
            starter.kill()
        assert launcher.leftovers(tmp_path / "other", []) == []
        assert launcher.poll(handle) is None
        (leftover,) = launcher.leftovers(tmp_path, [handle])
        assert launcher.poll(leftover) is None
        launcher.kill(leftover)
        assert launcher.poll(leftover) is not None
        assert not is_growing(launcher, leftover, job / "ticks")
        assert launcher.leftovers(tmp_path, [handle]) == []

    def test_handles_survive_json(self, launcher: Launcher, tmp_path: Path) -> None:
        job = spec(tmp_path / "job", CHECKPOINT)
        handle: RunHandle = json.loads(json.dumps(launcher.start(job)))
        wait(lambda: "ready" in read(launcher, handle, job.log))
        assert launcher.poll(handle) is None
        launcher.request_stop(handle)
        assert wait(lambda: launcher.poll(handle)) == ExitStatus(130)

    def test_limits_hold(self, launcher: Launcher, tmp_path: Path) -> None:
        program = (
            "import resource as r; print(*(r.getrlimit(getattr(r, n))[0] for n in ('RLIMIT_NOFILE', 'RLIMIT_CORE')))"
        )
        job = spec(tmp_path / "job", program, limits={"RLIMIT_NOFILE": 99, "RLIMIT_CORE": 0})
        handle = launcher.start(job)
        assert wait(lambda: launcher.poll(handle)) == ExitStatus(0)
        launcher.collect(handle)
        assert job.log.read_text().split() == ["99", "0"]
        with pytest.raises(ValueError, match="RLIMIT_MAGIC"):
            launcher.start(spec(tmp_path / "job", "", limits={"RLIMIT_MAGIC": 1}))

    def test_the_environment_holds_no_secrets(
        self, launcher: Launcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("AWS_SECRET_ACCESS_KEY", "LUTHIER_DATABASE", "PGPASSWORD", "HF_HOME"):
            monkeypatch.setenv(name, "value")
        job = spec(tmp_path / "job", "import json, os; print(json.dumps(dict(os.environ)))", device="0+1")
        handle = launcher.start(job)
        wait(lambda: launcher.poll(handle))
        launcher.collect(handle)
        environment = json.loads(job.log.read_text())
        assert not {"AWS_SECRET_ACCESS_KEY", "LUTHIER_DATABASE", "PGPASSWORD"} & environment.keys()
        assert (environment["HF_HOME"], environment["CUDA_VISIBLE_DEVICES"]) == ("value", "0,1")

    def test_activity_grows_while_a_run_computes(self, launcher: Launcher, tmp_path: Path) -> None:
        child = textwrap.dedent("""
            import time
            end = time.process_time() + 0.3
            while time.process_time() < end: pass
            print("done", flush=True)
            time.sleep(60)
        """)
        job = spec(tmp_path / "job", f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])")
        handle = launcher.start(job)
        wait(lambda: "done" in read(launcher, handle, job.log))
        assert launcher.activity(handle).cpu_seconds >= 0.3
        launcher.kill(handle)
        assert launcher.activity(handle).cpu_seconds == 0

    def test_a_paused_run_writes_nothing(self, launcher: Launcher, tmp_path: Path) -> None:
        job = spec(
            tmp_path / "job", "import itertools, os\nos.fork()\nfor n in itertools.count(): print(n, flush=True)"
        )
        handle = launcher.start(job)
        try:
            wait(lambda: read(launcher, handle, job.log))
            with launcher.paused(handle) as is_paused:  # False: a launcher that cannot
                assert not (is_paused and is_growing(launcher, handle, job.log))
            wait(lambda: is_growing(launcher, handle, job.log))
        finally:
            launcher.kill(handle)
