"""The engine as a process of this machine: started in a session of its own, watched, and ended with all it started.

It inherits a chosen part of our environment and none of our secrets. Every process that it starts inherits in turn the
mark SUPERVISED, its folder: by that even what outlived its supervisor, or left its group, is found and ended. This
module knows processes, nothing of jobs.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from luthier.allocator import preload

SUPERVISED = "LUTHIER_SUPERVISED"
"""The environment variable that holds the folder which a process works for."""

_KEPT = frozenset({
    "PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "PYTHONPATH",
    "PYTHONHASHSEED", "PYTHONWARNINGS", "VIRTUAL_ENV", "XDG_CACHE_HOME", "SSL_CERT_FILE", "SSL_CERT_DIR",
    "REQUESTS_CA_BUNDLE", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy",
    "LUTHIER_MODELS", "LUTHIER_CACHE", "LUTHIER_ENTRIES", "LUTHIER_DEBUG",
})  # fmt: skip
_KEPT_FAMILIES = ("LC_", "HF_", "OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "CUDA_", "NVIDIA_", "NCCL_", "GLOO_",
                  "TORCH", "PYTORCH_", "TRITON_", "TRANSFORMERS_", "TOKENIZERS_")  # fmt: skip
_SET = {"PYTHONUNBUFFERED": "1", "COLUMNS": "120"}  # a line is in the log when it was written, and tables fit
CPU = "cpu"
STANDSTILL_SECONDS = 2.0


def environment(device: str, sharing: int = 1, source: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What an engine on the slot `device` ("cpu", or GPU ids joined by "+") inherits of `source`.

    `sharing` engines share this machine's cores; each gets its part of them, unless OMP_NUM_THREADS says otherwise.
    """
    kept = {name: value for name, value in source.items() if name in _KEPT or name.startswith(_KEPT_FAMILIES)}
    visible = "" if device == CPU else device.replace("+", ",")
    if sharing > 1:
        kept.setdefault("OMP_NUM_THREADS", str(max(1, _cores() // sharing)))
    return kept | preload(source) | _SET | {"CUDA_VISIBLE_DEVICES": visible}


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True, slots=True)
class Trace:
    """A process as it can be found again: its number, and when it started, as numbers are used again."""

    pid: int
    created: float


@dataclass(frozen=True, slots=True)
class Effort:
    """What processes have done so far: processor time, and bytes read and written (0 where that cannot be told)."""

    seconds: float
    moved: int


@dataclass(frozen=True, slots=True)
class Launch:
    """What to start: for which folder, with its output at the end of `log`.

    `limits` maps names of the `resource` module (RLIMIT_AS, ...) to the most that each process may take; the shell
    sets them, as nothing of ours may run between fork and exec while threads are at work.
    """

    command: Sequence[str]
    folder: Path
    log: Path
    environment: Mapping[str, str]
    limits: Mapping[str, int] = field(default_factory=dict)


# Names of `resource`, with the letter of the shell's ulimit and the bytes of its unit.
_ULIMITS = {"RLIMIT_AS": ("v", 1024), "RLIMIT_CORE": ("c", 512), "RLIMIT_NOFILE": ("n", 1), "RLIMIT_FSIZE": ("f", 512),
            "RLIMIT_CPU": ("t", 1)}  # fmt: skip


class Running:
    """A process that we started. Not thread-safe."""

    def __init__(self, launch: Launch) -> None:
        self.folder = launch.folder
        launch.log.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(launch.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self._process = subprocess.Popen(
                _limited(launch), cwd=launch.folder, env={**launch.environment, SUPERVISED: str(launch.folder)},
                stdin=subprocess.DEVNULL, stdout=handle, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        finally:
            os.close(handle)
        self.trace = Trace(self._process.pid, _created(self._process.pid))

    def poll(self) -> int | None:
        """Its exit code, -N when signal N ended it; None while it runs."""
        return self._process.poll()

    def ask(self) -> None:
        """Ask it to end (SIGTERM): the engine then writes a checkpoint. Only its first process is asked, and tells
        the others itself."""
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it and all it started, at once. Returns when they are gone."""
        self._process.kill()
        self._process.wait()
        end(marked(self.folder))

    @contextmanager
    def paused(self) -> Iterator[bool]:
        """Let it and all below it stand still during the block; False where they do not within STANDSTILL_SECONDS."""
        stopped: list[psutil.Process] = []
        try:
            yield self._stop(stopped, time.monotonic() + STANDSTILL_SECONDS)
        finally:
            for process in stopped:
                with suppress(psutil.Error):
                    process.resume()

    def _stop(self, stopped: list[psutil.Process], deadline: float) -> bool:
        try:
            first = psutil.Process(self.trace.pid)
            while time.monotonic() < deadline:
                # The first one first: what stands still starts nothing new.
                for process in (first, *first.children(recursive=True)):
                    if process not in stopped:
                        stopped.append(process)
                        process.suspend()
                if all(_stands(process) for process in stopped):
                    return True
                time.sleep(0.002)
        except psutil.Error:
            return self.poll() is not None
        return False

    def effort(self) -> Effort:
        """Of it and of all below it that run now."""
        seconds, moved = 0.0, 0
        with suppress(psutil.Error):
            first = psutil.Process(self.trace.pid)
            for process in (first, *first.children(recursive=True)):
                with suppress(psutil.Error):
                    times = process.cpu_times()
                    seconds += times.user + times.system
                    if hasattr(process, "io_counters"):
                        counted = process.io_counters()
                        moved += getattr(counted, "read_chars", 0) + getattr(counted, "write_chars", 0)
        return Effort(seconds, moved)


def _limited(launch: Launch) -> list[str]:
    if not launch.limits:
        return list(launch.command)
    settings = [
        f"ulimit -{letter} {value // unit}"
        for letter, unit, value in ((*_ULIMITS[name], value) for name, value in launch.limits.items())
    ]
    return ["/bin/sh", "-c", " && ".join([*settings, 'exec "$0" "$@"']), *launch.command]


def _stands(process: psutil.Process) -> bool:
    """Whether every thread of a process that was stopped has come to a stop: one may be in the midst of a write."""
    tasks = Path(f"/proc/{process.pid}/task")
    if not tasks.is_dir():
        return bool(process.status() == psutil.STATUS_STOPPED)
    try:
        states = [(task / "stat").read_text().rpartition(")")[2].split()[0] for task in tasks.iterdir()]
    except (FileNotFoundError, ProcessLookupError):  # a thread that has just ended
        return False
    return all(state in "TtZX" for state in states)


def _created(pid: int) -> float:
    try:
        return psutil.Process(pid).create_time()
    except psutil.Error:
        return time.time()  # it ended within its first moment: there is nothing to find again


def check_limits(limits: Mapping[str, int]) -> None:
    """ValueError for a limit that cannot be set here."""
    for name in limits:
        if name not in _ULIMITS or not hasattr(resource, name):
            raise ValueError(f"{name}: expected one of {', '.join(_ULIMITS)}")


def marked(folder: Path) -> list[psutil.Process]:
    """Every process on this machine that works for `folder` or a folder below it."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            mark = process.environ().get(SUPERVISED, "")
            if process.pid != os.getpid() and mark and Path(mark).is_relative_to(folder):
                found.append(process)
    return found


def find(trace: Trace) -> psutil.Process | None:
    """The process of `trace`, where it still runs."""
    with suppress(psutil.Error):
        process = psutil.Process(trace.pid)
        if abs(process.create_time() - trace.created) < 1 and process.status() != psutil.STATUS_ZOMBIE:
            return process
    return None


def end(processes: Sequence[psutil.Process], grace: float = 0, meanwhile: Callable[[], None] = lambda: None) -> None:
    """End processes that need not be ours: those at their top are asked first, where there is `grace` (seconds).

    `meanwhile` is called about every second of it.
    """
    if grace:
        for process in _tops(processes):
            with suppress(psutil.Error):
                process.terminate()
        deadline, left = time.monotonic() + grace, list(processes)
        while left and time.monotonic() < deadline:
            meanwhile()
            left = psutil.wait_procs(left, min(1.0, grace))[1]
    for process in processes:
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(processes, 10)


def _tops(processes: Sequence[psutil.Process]) -> Iterator[psutil.Process]:
    numbers = {process.pid for process in processes}
    for process in processes:
        with suppress(psutil.Error):
            if process.ppid() not in numbers:
                yield process
