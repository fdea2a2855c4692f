"""Starting the ranks of a job under torchrun, and speaking for them.

    python -m luthier.training JOB           holds the job folder's lock, is torchrun's agent
      |-- the same, RANK=0                   prepares, speaks, writes
      `-- the same, RANK=1 ...               computes

What the two levels tell each other lies in a folder of their own:

    stop      asked to stop: the ranks look at each exchange, and all save and end after the same step
    heard     the ranks look; before that (rows are being tokenized) there is nothing to save, and they just end
    alive     locked by the launcher as long as it lives; a rank that gets the lock has lost it, and ends
    rank-N    how a rank ended, when not well

A rank that dies takes the others with it: the job ends with one line and goes on from its checkpoint when asked to.
Nothing is restarted here: torch 2.13's ranks can hang after that (pytorch issue 135712).
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
from luthier.jobfolder import write_json
from luthier.jobspec import JobSpec
from luthier.training.process_group import TIMEOUT, timeout

BESIDE = "LUTHIER_BESIDE_RANKS"
"""The environment variable that tells a rank where the folder beside the ranks is."""

_GRACE = 10  # seconds that the other ranks get to end when one has
_SILENT_LOGS = ("torch.distributed.elastic", "torch.distributed.launcher")


def wanted(job: JobSpec, asked: int) -> int:
    """How many ranks a job has: as asked for (0: as the job says), or one for each GPU that it may use, or one.

    SettingError for ranks that the machine has no devices for.
    """
    size = asked or job.ranks
    gpus = torch.cuda.device_count() if job.device in ("auto", "cuda") else 0
    if size == 0:
        return max(1, gpus)
    if size == 1:
        return 1
    if job.device.startswith("cuda:"):
        raise SettingError(f"--ranks {size} with --device {job.device}: one GPU holds one rank; use --device cuda")
    on_mps = job.device == "mps" or (job.device == "auto" and not gpus and torch.backends.mps.is_available())
    if on_mps:
        raise SettingError(f"--ranks {size}: Apple's GPU holds one rank; use --device cpu, or one rank")
    if gpus and size > gpus:
        raise SettingError(
            f"--ranks {size}: this machine shows {gpus} GPUs, and each holds one rank; use --device cpu, or fewer ranks"
        )
    return size


@dataclass(frozen=True, slots=True)
class Ending:
    """How a rank ended. `weight` tells causes (high) from what follows when another rank is gone (low)."""

    text: str
    exit_code: int
    weight: int


def launch(arguments: Sequence[str], size: int, announce: Callable[[str], None]) -> None:
    """Run ``python -m luthier.training ARGUMENTS`` on `size` ranks and wait for them; raise what ended them."""
    limit = timeout()
    for name in _SILENT_LOGS:  # what they say would stand beside our one line
        logging.getLogger(name).addHandler(logging.NullHandler())
        logging.getLogger(name).propagate = False
    with tempfile.TemporaryDirectory(prefix="luthier-ranks-") as place, _environment(Path(place), size):
        beside = Path(place)
        config = LaunchConfig(
            min_nodes=1, max_nodes=1, nproc_per_node=size, run_id=uuid.uuid4().hex, rdzv_backend="c10d",
            rdzv_endpoint="localhost:0", local_addr="localhost", max_restarts=0, signals_to_handle="SIGUSR2",
            logs_specs=DefaultLogsSpecs(log_dir=str(beside / "torchrun")), shutdown_timeout=_GRACE,
        )  # fmt: skip
        failures: Mapping[int, ProcessFailure] = {}
        with _alive(beside), _stop_requests(beside, announce):
            try:
                elastic_launch(config, sys.executable)("-P", "-m", "luthier.training", *arguments)
            except ChildFailedError as error:
                failures = error.failures
        first = min((failure.timestamp for failure in failures.values()), default=0)
        # What torchrun had to kill in the end was no cause: it gives the others some time to go.
        codes = {rank: each.exitcode for rank, each in failures.items() if each.timestamp - first < _GRACE // 2}
        _raise_cause(_endings(beside, size), codes, limit)


@contextmanager
def _environment(beside: Path, size: int) -> Iterator[None]:
    """What the ranks inherit; what the user has set stays."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    defaults = {
        "OMP_NUM_THREADS": str(max(1, cores // size)),
        # All ranks are on this machine: no address of it needs to be found out.
        "GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo",
        # Ranks of a second attempt would read the addresses of the first (pytorch issue 135712).
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
    }
    before = dict(os.environ)
    os.environ.update(defaults | before | {BESIDE: str(beside)})
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def _alive(beside: Path) -> Iterator[None]:
    with open(beside / "alive", "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextmanager
def _stop_requests(beside: Path, announce: Callable[[str], None]) -> Iterator[None]:
    """The first SIGINT or SIGTERM asks the ranks to stop, where they can hear it; the second one ends them."""

    def on_signal(number: int, frame: object) -> None:
        if (beside / "stop").exists() or not (beside / "heard").exists():
            raise KeyboardInterrupt
        (beside / "stop").touch()
        announce("\nstopping; the run can be resumed (once more: stop at once)")

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _endings(beside: Path, size: int) -> dict[int, Ending]:
    paths = {rank: beside / f"rank-{rank}" for rank in range(size)}
    return {rank: Ending(**json.loads(path.read_text("utf-8"))) for rank, path in paths.items() if path.exists()}


def _raise_cause(endings: Mapping[int, Ending], codes: Mapping[int, int], limit: float) -> None:
    """Raise what ended the ranks; return when nothing did."""
    for rank, code in sorted(codes.items()):
        if code < 0 and -code != signal.SIGTERM and rank not in endings:  # SIGTERM: torchrun's, to the others
            name = signal.Signals(-code).name
            advice = "; out of memory?" if name == "SIGKILL" else ""
            raise LuthierError(f"rank {rank} was killed ({name}{advice}); {_CHECKPOINTS}")
    if endings:
        rank, cause = max(sorted(endings.items()), key=lambda item: item[1].weight)
        if cause.exit_code == Interrupted.exit_code:
            raise Interrupted(cause.text)
        error = LuthierError(cause.text if cause.weight > 1 else f"rank {rank} waited {limit:g} s {_FOR_ANOTHER}")
        if cause.weight == 0:
            error = LuthierError(f"rank {rank} lost its connection to another rank; {_CHECKPOINTS}")
        error.exit_code = cause.exit_code
        raise error
    if codes:
        rank, code = min(codes.items())
        raise LuthierError(f"rank {rank} ended with exit code {code}; {_CHECKPOINTS}")


_CHECKPOINTS = "the last checkpoint is intact, --resume goes on from it"
_FOR_ANOTHER = f"for another rank in vain ({TIMEOUT} sets the limit); {_CHECKPOINTS}"


def beside() -> Path | None:
    """Where this rank and its launcher meet; None for a process that has no launcher of ours."""
    place = os.environ.get(BESIDE)
    return Path(place) if place else None


def stop_asked(place: Path) -> bool:
    """Whether the user has asked the run to stop; to be asked again and again."""
    (place / "heard").touch()
    return (place / "stop").exists()


def end_with_launcher(place: Path) -> None:
    """From now on, end this process when its launcher is gone, were it by kill -9."""

    def wait() -> None:
        with suppress(OSError), open(place / "alive") as handle:
            fcntl.flock(handle, fcntl.LOCK_SH)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def report_ending(place: Path, rank: int, error: Exception) -> int:
    """Leave the reason of this rank's end for the launcher; return the exit code to leave with.

    A stop that was asked for is no failure: every rank saves and ends by itself, and torchrun must not hurry them.
    """
    stopped = isinstance(error, Interrupted)
    write_json(place / f"rank-{rank}", asdict(_ending(rank, error)))
    return 0 if stopped else 1


def _ending(rank: int, error: Exception) -> Ending:
    if isinstance(error, LuthierError):
        return Ending(str(error), error.exit_code, 3)
    first = (str(error).strip().splitlines() or [""])[0]
    lowered = str(error).lower()
    exchange = isinstance(error, RuntimeError)  # gloo's and NCCL's, told by their words
    if isinstance(error, TimeoutError) or (exchange and ("timed out" in lowered or "timeout" in lowered)):
        return Ending(first, 1, 1)
    lost = exchange and ("connection closed" in lowered or "connection reset" in lowered)
    if isinstance(error, ConnectionError) or lost:
        return Ending(first, 1, 0)
    hint = "LUTHIER_DEBUG=1 shows the traceback; please report it"
    return Ending(f"rank {rank}: internal error: {type(error).__name__}: {first} ({hint})", 1, 2)
