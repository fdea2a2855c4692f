"""The protocol between the supervisor and whatever runs a job folder: a local process, or a job of a cluster.

The unit of work is a folder: a launcher that runs it elsewhere ships the folder there before `start` returns control to
the program, and `collect` brings back what the program wrote. A run is named by a handle, a JSON object that only its
launcher understands; the supervisor stores it, so that the next supervisor can find the run. How a run ended is data
(ExitStatus), not an operating system's wait status.

Training jobs and the processes that serve an endpoint's variants use the same protocol: both are a program that works
on a folder, and is polled and stopped. One that serves answers HTTP at `address(folder)`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

CPU = "cpu"
Program = Literal["training", "serving"]
RunHandle = Mapping[str, Any]
"""Names a run; JSON-serialisable, and valid in a later process of the same home."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchSpec:
    """What to start on `folder`, which is also the working directory; output is appended to `log`.

    A launcher that ships the folder replaces its path in `arguments`. `device` is "cpu" or GPU ids joined by "+";
    `sharing` runs, this one included, share the CPU's cores. `limits` bound each process of the run, by names of the
    `resource` module (RLIMIT_AS, ...).
    """

    program: Program
    arguments: Sequence[str]
    folder: Path
    device: str = CPU
    sharing: int = 1
    limits: Mapping[str, int] = field(default_factory=dict)

    @property
    def log(self) -> Path:
        return self.folder / "logs" / "engine.log"


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """How a run ended: by itself with `code`, or by a signal ("SIGKILL"), or unknown (neither; after a restart)."""

    code: int | None = None
    signal: str = ""


@dataclass(frozen=True, slots=True)
class Activity:
    """What all processes of a run have done so far: CPU time, and bytes read and written (0 where not measurable)."""

    cpu_seconds: float = 0.0
    io_bytes: int = 0


class Launcher(Protocol):
    """Runs job folders. No method but `kill` and `collect` waits for a run; all may be called repeatedly."""

    def start(self, spec: LaunchSpec) -> RunHandle:
        """Start a run. ValueError for a limit that cannot be set; OSError or LuthierError when it cannot be started."""
        ...

    def poll(self, handle: RunHandle) -> ExitStatus | None:
        """How the run ended; None while it runs. May bring its log and metrics so far into the folder."""
        ...

    def request_stop(self, handle: RunHandle) -> None:
        """Ask the program to write a checkpoint, or finish its requests, and exit. Does nothing once it has ended.

        A training whose folder has the finish marker (JobFolder) writes its artifact, too: a launcher that shipped the
        folder ships the marker before.
        """
        ...

    def kill(self, handle: RunHandle) -> None:
        """End the run and everything it started, also what outlived it. Nothing is running when this returns."""
        ...

    def collect(self, handle: RunHandle) -> None:
        """Bring what the run wrote into its folder on this machine: all of it once it has ended, else what is there."""
        ...

    def activity(self, handle: RunHandle) -> Activity:
        """What the run has done so far, to tell one that computes from one that stalls."""
        ...

    def paused(self, handle: RunHandle) -> AbstractContextManager[bool]:
        """Suspend the run during the block, so that its log can be truncated; False where that is not possible."""
        ...

    def leftovers(self, root: Path, recorded: Sequence[RunHandle]) -> list[RunHandle]:
        """Runs on folders below `root` that still run and were started by an earlier process: those of `recorded`
        (the handles it stored), and any others that can be found."""
        ...

    def address(self, folder: Path) -> str:
        """Where a serving program on `folder` answers: a unix socket's path, or HOST:PORT."""
        ...
