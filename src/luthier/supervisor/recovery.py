"""Cleans up after an earlier supervisor: its running processes, its leases and orphaned folders."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from luthier.jobs.store import Store
from luthier.launchers.launcher import RunHandle
from luthier.supervisor.context import SupervisorContext
from luthier.supervisor.folder import read_state
from luthier.supervisor.serving import read_handle

_log = logging.getLogger(__name__)
POLL_SECONDS = 0.1


def recover(context: SupervisorContext, heartbeat: Callable[[], None]) -> None:
    """End every run of this home, and release what other supervisors hold in its store.

    Engines are first asked to stop, which makes them write a checkpoint; `heartbeat` is called meanwhile.
    """
    settings, launcher = context.settings, context.launcher
    leftovers = launcher.leftovers(settings.home, list(_recorded_handles(context)))
    if leftovers:
        _log.warning("stopping %d runs that outlived their supervisor", len(leftovers))
    for handle in leftovers:
        launcher.request_stop(handle)
    deadline = time.monotonic() + settings.stop_seconds
    while time.monotonic() < deadline and any(launcher.poll(handle) is None for handle in leftovers):
        heartbeat()
        time.sleep(POLL_SECONDS)
    for handle in leftovers:
        launcher.kill(handle)
    released = context.store.release_others(context.owner)
    if released:
        _log.warning("taking over %d jobs and endpoints of an earlier supervisor", released)
    for folder in (settings.jobs, settings.endpoints):
        remove_orphans(folder, context.store)


def remove_orphans(folder: Path, store: Store) -> None:
    """Remove the folders of resources that were deleted."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    for name in set(names) - store.known(names):
        shutil.rmtree(folder / name, ignore_errors=True)


def _recorded_handles(context: SupervisorContext) -> Iterator[RunHandle]:
    """The handles that earlier supervisors stored."""
    for resource in context.store.held_by_others(context.owner):
        handles = [read_state(context.settings.jobs / resource.id).handle]
        handles += map(read_handle, (context.settings.endpoints / resource.id).glob("*"))
        yield from (handle for handle in handles if handle)


def jobs_without_device(jobs: Path, waiting: Sequence[str]) -> Iterator[str]:
    """Yield the `waiting` jobs whose engine is done, so that they need no device."""
    for job in waiting:
        if read_state(jobs / job).stage in ("upload", "finish"):
            yield job
