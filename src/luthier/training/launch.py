"""Launch the ranks of a job under torchrun, and report their failures.

    python -m luthier.training JOB           holds the job folder's lock, is torchrun's agent
      |-- the same, RANK=0                   prepares, prints, writes
      `-- the same, RANK=1 ...               computes

Launcher and ranks communicate through files in a temporary launch folder:

    stop      a stop was requested: the ranks check it at each collective, and all save and exit after the same step
    polled    the ranks check for stop requests; before that (tokenizing) there is nothing to save, and they just exit
    alive     locked by the launcher while it runs; a rank that acquires the lock has lost its launcher, and exits
    rank-N    the reason of a rank's failure

When a rank fails, torchrun ends the others: the job fails with a one-line error and can be resumed from its checkpoint.
Ranks are not restarted, since they can hang after a restart in torch 2.13 (pytorch issue 135712).
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import signal
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from luthier.errors import Interrupted, LuthierError, SettingError
from luthier.exhaustion import capacity_error
from luthier.jobfolder import write_json
from luthier.jobspec import JobSpec
from luthier.training.process_group import STOPPING, TIMEOUT, timeout

LAUNCH_FOLDER = "LUTHIER_LAUNCH_FOLDER"
"""The environment variable that names the launch folder to the ranks."""

_GRACE = 10  # seconds for the other ranks to exit after one has
_SILENT_LOGS = ("torch.distributed.elastic", "torch.distributed.launcher")


def resolve_world_size(spec: JobSpec, requested: int) -> int:
    """The number of ranks of a job: `requested`, or (if 0) the spec's, or one per visible GPU, or 1.

    SettingError when the machine has no devices for that many ranks.
    """
    size = requested or spec.ranks
    gpus = torch.cuda.device_count() if spec.device in ("auto", "cuda") else 0
    if size == 0:
        return max(1, gpus)
    if size == 1:
        return 1
    if spec.device.startswith("cuda:"):
        raise SettingError(f"--ranks {size} with --device {spec.device}: one GPU runs one rank; use --device cuda")
    on_mps = spec.device == "mps" or (spec.device == "auto" and not gpus and torch.backends.mps.is_available())
    if on_mps:
        raise SettingError(f"--ranks {size}: Apple's GPU runs one rank; use --device cpu, or --ranks 1")
    if gpus and size > gpus:
        raise SettingError(
            f"--ranks {size}: {gpus} GPUs are visible, and each runs one rank; use --device cpu, or fewer ranks"
        )
    return size


@dataclass(frozen=True, slots=True)
class RankFailure:
    """Why a rank exited. `severity` separates causes (high) from consequences of another rank's exit (low)."""

    message: str
    exit_code: int
    severity: int


CONNECTION_LOST, TIMED_OUT, INTERNAL_ERROR, KNOWN_ERROR = range(4)  # severities


def launch(arguments: Sequence[str], world_size: int, say: Callable[[str], None]) -> None:
    """Run ``python -m luthier.training ARGUMENTS`` on `world_size` ranks, wait, and raise the error that ended them."""
    rank_timeout = timeout()
    for name in _SILENT_LOGS:  # their output would hide our one-line error
        logging.getLogger(name).addHandler(logging.NullHandler())
        logging.getLogger(name).propagate = False
    with tempfile.TemporaryDirectory(prefix="luthier-ranks-") as name, _environment(Path(name), world_size):
        folder = Path(name)
        config = LaunchConfig(
            min_nodes=1, max_nodes=1, nproc_per_node=world_size, run_id=uuid.uuid4().hex, rdzv_backend="c10d",
            rdzv_endpoint="localhost:0", local_addr="localhost", max_restarts=0, signals_to_handle="SIGUSR2",
            logs_specs=DefaultLogsSpecs(log_dir=str(folder / "torchrun")), shutdown_timeout=_GRACE,
        )  # fmt: skip
        failures: Mapping[int, ProcessFailure] = {}
        with _lock_alive_file(folder), _forward_stop_requests(folder, say):
            try:
                elastic_launch(config, sys.executable)("-P", "-m", "luthier.training", *arguments)
            except ChildFailedError as error:
                failures = error.failures
        first = min((failure.timestamp for failure in failures.values()), default=0)
        # Ranks that torchrun killed after the grace period were not the cause.
        causes = {rank: failure for rank, failure in failures.items() if failure.timestamp - first < _GRACE // 2}
        codes = {rank: failure.exitcode for rank, failure in causes.items()}
        _raise_cause(_read_failures(folder, world_size), codes, rank_timeout)


@contextmanager
def _environment(folder: Path, world_size: int) -> Iterator[None]:
    """Set the variables that the ranks inherit; the user's own values stay."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    defaults = {
        "OMP_NUM_THREADS": str(max(1, cores // world_size)),
        # All ranks are on this machine, so its network address is not needed.
        "GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo",
        # Ranks of a second attempt would read the addresses of the first (pytorch issue 135712).
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
    }
    previous = dict(os.environ)
    os.environ.update(defaults | previous | {LAUNCH_FOLDER: str(folder)})
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(previous)


@contextmanager
def _lock_alive_file(folder: Path) -> Iterator[None]:
    with open(folder / "alive", "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextmanager
def _forward_stop_requests(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    """The first SIGINT or SIGTERM requests a stop, if the ranks poll already; the second one ends them at once."""

    def on_signal(number: int, frame: object) -> None:
        if (folder / "stop").exists() or not (folder / "polled").exists():
            raise KeyboardInterrupt
        (folder / "stop").touch()
        say(STOPPING)

    previous = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _read_failures(folder: Path, world_size: int) -> dict[int, RankFailure]:
    paths = {rank: folder / f"rank-{rank}" for rank in range(world_size)}
    return {rank: RankFailure(**json.loads(path.read_text("utf-8"))) for rank, path in paths.items() if path.exists()}


def _raise_cause(failures: Mapping[int, RankFailure], exit_codes: Mapping[int, int], rank_timeout: float) -> None:
    """Raise the error that ended the ranks; return when there was none."""
    for rank, code in sorted(exit_codes.items()):
        if code < 0 and -code != signal.SIGTERM and rank not in failures:  # SIGTERM: torchrun's, to the others
            name = signal.Signals(-code).name
            advice = "; out of memory?" if name == "SIGKILL" else ""
            raise LuthierError(f"rank {rank} was killed ({name}{advice}); {_ADVICE}")
    if failures:
        rank, cause = max(sorted(failures.items()), key=lambda item: item[1].severity)
        if cause.exit_code == Interrupted.exit_code:
            raise Interrupted(cause.message)
        error = LuthierError(cause.message)
        if cause.severity == TIMED_OUT:
            error = LuthierError(
                f"rank {rank} waited {rank_timeout:g} s for another rank and gave up ({TIMEOUT} sets the limit); "
                f"{_ADVICE}"
            )
        elif cause.severity == CONNECTION_LOST:
            error = LuthierError(f"rank {rank} lost its connection to another rank; {_ADVICE}")
        error.exit_code = cause.exit_code
        raise error
    if exit_codes:
        rank, code = min(exit_codes.items())
        raise LuthierError(f"rank {rank} exited with code {code}; {_ADVICE}")


_ADVICE = "the last checkpoint is intact; --resume continues from it"


def launch_folder() -> Path | None:
    """The launch folder of this rank; None for a process that our launcher did not start."""
    name = os.environ.get(LAUNCH_FOLDER)
    return Path(name) if name else None


def is_stop_requested(folder: Path) -> bool:
    """Whether the user has requested a stop; to be polled."""
    (folder / "polled").touch()
    return (folder / "stop").exists()


def exit_with_launcher(folder: Path) -> None:
    """From now on, exit this process when its launcher is gone, even by kill -9."""

    def wait() -> None:
        with suppress(OSError), open(folder / "alive") as handle:
            fcntl.flock(handle, fcntl.LOCK_SH)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def report_failure(folder: Path, rank: int, error: Exception) -> int:
    """Write the reason of this rank's exit for the launcher; return the exit code to use.

    A requested stop exits with 0: every rank saves and exits by itself, and torchrun must not kill them.
    """
    write_json(folder / f"rank-{rank}", asdict(_rank_failure(rank, error)))
    return 0 if isinstance(error, Interrupted) else 1


def _rank_failure(rank: int, error: Exception) -> RankFailure:
    error = capacity_error(error) or error
    if isinstance(error, LuthierError):
        return RankFailure(str(error), error.exit_code, KNOWN_ERROR)
    first_line = (str(error).strip().splitlines() or [""])[0]
    lowered = str(error).lower()
    is_collective = isinstance(error, RuntimeError)  # gloo's and NCCL's errors, distinguished by their text
    if isinstance(error, TimeoutError) or (is_collective and ("timed out" in lowered or "timeout" in lowered)):
        return RankFailure(first_line, 1, TIMED_OUT)
    is_lost = is_collective and ("connection closed" in lowered or "connection reset" in lowered)
    if isinstance(error, ConnectionError) or is_lost:
        return RankFailure(first_line, 1, CONNECTION_LOST)
    hint = "LUTHIER_DEBUG=1 shows the traceback; please report it"
    message = f"rank {rank}: internal error: {type(error).__name__}: {first_line} ({hint})"
    return RankFailure(message, 1, INTERNAL_ERROR)
