"""The local launcher: each run is a process of this machine, in a session of its own.

A run inherits a selected part of the environment and no secrets. Every process below it inherits the variable
LUTHIER_SUPERVISED, the path of its folder: by that, processes that left the process group, or outlived the supervisor,
are found and ended. This module knows processes, nothing of jobs.
"""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from luthier.allocator import preload
from luthier.errors import UserError
from luthier.launchers.launcher import CPU, Activity, ExitStatus, LaunchSpec, RunHandle

SUPERVISED = "LUTHIER_SUPERVISED"
"""The environment variable that holds the folder a process works on."""

_KEPT = frozenset({
    "PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "PYTHONPATH",
    "PYTHONHASHSEED", "PYTHONWARNINGS", "VIRTUAL_ENV", "XDG_CACHE_HOME", "SSL_CERT_FILE", "SSL_CERT_DIR",
    "REQUESTS_CA_BUNDLE", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy",
    "LUTHIER_MODELS", "LUTHIER_CACHE", "LUTHIER_ENTRIES", "LUTHIER_DEBUG",
})  # fmt: skip
_KEPT_PREFIXES = ("LC_", "HF_", "OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "CUDA_", "NVIDIA_", "NCCL_", "GLOO_",
                  "TORCH", "PYTORCH_", "TRITON_", "TRANSFORMERS_", "TOKENIZERS_")  # fmt: skip
_SET = {"PYTHONUNBUFFERED": "1", "COLUMNS": "120"}  # a line is in the log once it is written, and tables fit
# Names of `resource`, with the option of the shell's ulimit and the bytes of its unit.
ULIMITS = {"RLIMIT_AS": ("v", 1024), "RLIMIT_CORE": ("c", 512), "RLIMIT_NOFILE": ("n", 1), "RLIMIT_FSIZE": ("f", 512),
            "RLIMIT_CPU": ("t", 1)}  # fmt: skip
PAUSE_SECONDS = 2.0  # in which all threads of a suspended run have to stop
_LONGEST_SOCKET = 100  # bytes of a path; the systems' limits begin at 104
COMMANDS: Mapping[str, Sequence[str]] = {
    program: (sys.executable, "-P", "-m", f"luthier.{program}") for program in ("training", "serving")
}


class LocalLauncher:
    """Launcher with local processes; a handle is {"pid", "created", "folder"}. Not thread-safe."""

    def __init__(self, commands: Mapping[str, Sequence[str]] = COMMANDS) -> None:
        """`commands` maps the name of a program to its command line, without arguments."""
        self._commands = {**COMMANDS, **commands}
        self._children: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, spec: LaunchSpec) -> RunHandle:
        command = [*self._commands[spec.program]]
        if spec.program == "serving":
            address = self.address(spec.folder)
            Path(address).unlink(missing_ok=True)
            command += ["--socket", address]
        command += spec.arguments
        spec.log.parent.mkdir(parents=True, exist_ok=True)
        log = os.open(spec.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            child = subprocess.Popen(
                _with_limits(command, spec.limits), cwd=spec.folder, stdin=subprocess.DEVNULL, stdout=log,
                stderr=subprocess.STDOUT, start_new_session=True,
                env={**environment(spec.device, spec.sharing), SUPERVISED: str(spec.folder)},
            )  # fmt: skip
        finally:
            os.close(log)
        self._children[child.pid] = child
        try:
            created = psutil.Process(child.pid).create_time()
        except psutil.Error:
            created = time.time()  # it ended within its first moment: there is nothing to find again
        return {"pid": child.pid, "created": created, "folder": str(spec.folder)}

    def poll(self, handle: RunHandle) -> ExitStatus | None:
        child = self._children.get(handle["pid"])
        if child is None:
            return None if find_process(handle) else ExitStatus()
        code = child.poll()
        if code is None or code >= 0:
            return None if code is None else ExitStatus(code)
        known = {item.value: item.name for item in signal.Signals}
        return ExitStatus(signal=known.get(-code, f"signal {-code}"))

    def request_stop(self, handle: RunHandle) -> None:
        """SIGTERM to the first process alone, which tells the others itself."""
        if self.poll(handle) is None:
            with suppress(ProcessLookupError):
                os.kill(handle["pid"], signal.SIGTERM)

    def kill(self, handle: RunHandle) -> None:
        child = self._children.get(handle["pid"])
        if child is not None:
            child.kill()
            child.wait()
        elif process := find_process(handle):
            _kill([process])
        if "folder" in handle:  # version 0.3 recorded none
            folder = Path(handle["folder"])
            _kill(find_processes(folder))
            Path(self.address(folder)).unlink(missing_ok=True)

    def collect(self, handle: RunHandle) -> None:
        """Nothing to bring: the run wrote into the folder itself."""

    def activity(self, handle: RunHandle) -> Activity:
        seconds, moved = 0.0, 0
        with suppress(psutil.Error):
            for process in _family(handle):
                with suppress(psutil.Error):
                    times = process.cpu_times()
                    seconds += times.user + times.system
                    if hasattr(process, "io_counters"):
                        counters = process.io_counters()
                        moved += getattr(counters, "read_chars", 0) + getattr(counters, "write_chars", 0)
        return Activity(seconds, moved)

    @contextmanager
    def paused(self, handle: RunHandle) -> Iterator[bool]:
        stopped: list[psutil.Process] = []
        try:
            yield self._suspend(handle, stopped, time.monotonic() + PAUSE_SECONDS)
        finally:
            for process in stopped:
                with suppress(psutil.Error):
                    process.resume()

    def _suspend(self, handle: RunHandle, stopped: list[psutil.Process], deadline: float) -> bool:
        try:
            while time.monotonic() < deadline:
                # Parents come first: a suspended process starts no new one.
                for process in _family(handle):
                    if process not in stopped:
                        stopped.append(process)
                        process.suspend()
                if all(_is_stopped(process) for process in stopped):
                    return True
                time.sleep(0.002)
        except psutil.Error:
            return self.poll(handle) is not None
        return False

    def leftovers(self, root: Path, recorded: Sequence[RunHandle]) -> list[RunHandle]:
        """By the mark in their environment, and by the records where an environment cannot be read."""
        processes = {process.pid: process for process in find_processes(root)}
        handles: dict[int, RunHandle] = {}
        for pid, process in processes.items():
            with suppress(psutil.Error):
                if process.ppid() not in processes:  # the others are ended by their parents
                    folder = process.environ()[SUPERVISED]
                    handles[pid] = {"pid": pid, "created": process.create_time(), "folder": folder}
        for handle in recorded:
            if handle["pid"] not in processes and handle["pid"] != os.getpid() and find_process(handle):
                handles[handle["pid"]] = handle
        return list(handles.values())

    def address(self, folder: Path) -> str:
        """A socket beside `folder`, or, as a socket's path has to be short, in a folder of ours among temporary files.

        UserError when that folder belongs to somebody else.
        """
        path = folder.with_name(f"{folder.name}.sock")
        if len(os.fsencode(path)) <= _LONGEST_SOCKET:
            return str(path)
        own = Path(tempfile.gettempdir()) / f"luthier-{os.getuid()}"
        own.mkdir(mode=0o700, exist_ok=True)
        state = own.lstat()
        if own.is_symlink() or state.st_uid != os.getuid() or state.st_mode & 0o077:
            raise UserError(
                f"{own}: not a folder that only this user can access; remove it, or choose a shorter --home"
            )
        return str(own / f"{hashlib.sha256(os.fsencode(path)).hexdigest()[:24]}.sock")


def environment(device: str, sharing: int = 1, source: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What a run on `device` inherits of `source`.

    `sharing` runs divide this machine's cores among them, unless OMP_NUM_THREADS says otherwise.
    """
    kept = {name: value for name, value in source.items() if name in _KEPT or name.startswith(_KEPT_PREFIXES)}
    visible = "" if device == CPU else device.replace("+", ",")
    if sharing > 1:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        kept.setdefault("OMP_NUM_THREADS", str(max(1, cores // sharing)))
    return kept | preload(source) | _SET | {"CUDA_VISIBLE_DEVICES": visible}


def _with_limits(command: list[str], limits: Mapping[str, int]) -> list[str]:
    """The shell sets the limits, as none of our code may run between fork and exec while threads are at work."""
    if not limits:
        return command
    if unknown := sorted(limits.keys() - ULIMITS.keys()):
        raise ValueError(f"{unknown[0]}: expected one of {', '.join(ULIMITS)}")
    settings = [f"ulimit -{ULIMITS[name][0]} {value // ULIMITS[name][1]}" for name, value in limits.items()]
    return ["/bin/sh", "-c", " && ".join([*settings, 'exec "$0" "$@"']), *command]


def _family(handle: RunHandle) -> list[psutil.Process]:
    """The run's first process and all below it; psutil.Error when it has ended."""
    process = psutil.Process(handle["pid"])
    return [process, *process.children(recursive=True)]


def _is_stopped(process: psutil.Process) -> bool:
    """Whether every thread of a suspended process has stopped: one may still be in the middle of a write."""
    tasks = Path(f"/proc/{process.pid}/task")
    if not tasks.is_dir():
        return bool(process.status() == psutil.STATUS_STOPPED)
    try:
        states = [(task / "stat").read_text().rpartition(")")[2].split()[0] for task in tasks.iterdir()]
    except (FileNotFoundError, ProcessLookupError):  # a thread that has just ended
        return False
    return all(state in "TtZX" for state in states)


def find_process(handle: RunHandle) -> psutil.Process | None:
    """The first process of a run while it runs; the time of its creation tells it from a later one with its id."""
    with suppress(psutil.Error):
        process = psutil.Process(handle["pid"])
        if abs(process.create_time() - handle["created"]) < 1 and process.status() != psutil.STATUS_ZOMBIE:
            return process
    return None


def find_processes(root: Path) -> list[psutil.Process]:
    """Every other process of this machine that works on `root` or a folder below it."""
    processes = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            folder = process.environ().get(SUPERVISED, "")
            if process.pid != os.getpid() and folder and Path(folder).is_relative_to(root):
                processes.append(process)
    return processes


def _kill(processes: Sequence[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(processes, 10)
