"""What a dead supervisor left: processes still running, leases still held, jobs that need no device any more."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil

from luthier.jobs.store import Store
from luthier.launchers import process
from luthier.supervisor.context import SupervisorContext
from luthier.supervisor.folder import read_marks

_log = logging.getLogger(__name__)


def recover(context: SupervisorContext, beat: Callable[[], None]) -> None:
    """End every process that still works for this home, and free what other supervisors hold of its store.

    Engines are asked first, so that what they did since their last checkpoint is not lost; `beat` tells meanwhile that
    somebody is at it.
    """
    left = leftovers(context)
    if left:
        _log.warning("ending %d processes that outlived their supervisor", len(left))
        process.end(left, context.settings.stop_seconds, beat)
    for folder in (context.settings.jobs, context.settings.endpoints):
        process.end(process.marked(folder))  # what those started while they ended
    freed = context.store.release_others(context.owner)
    if freed:
        _log.warning("going on with %d jobs and endpoints of an earlier supervisor", freed)
    for folder in (context.settings.jobs, context.settings.endpoints):
        remove_orphans(folder, context.store)


def remove_orphans(folder: Path, store: Store) -> None:
    """Remove the folders of resources that were deleted."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    for name in set(names) - store.known(names):
        shutil.rmtree(folder / name, ignore_errors=True)


def leftovers(context: SupervisorContext) -> list[psutil.Process]:
    """Processes by their mark, and by the folders' own records where an environment cannot be read."""
    found = {each.pid: each for each in process.marked(context.settings.home)}
    for resource in context.store.held_by_others(context.owner):
        trace = read_marks(context.settings.jobs / resource.id).trace
        each = process.find(trace) if trace else None
        if each is not None and each.pid != os.getpid():
            found[each.pid] = each
    return list(found.values())


def beyond_devices(jobs: Path, waiting: Sequence[str]) -> Iterator[str]:
    """Of the jobs that nobody holds, those whose engine is done: they go on without waiting for a device."""
    for job in waiting:
        if read_marks(jobs / job).stage in ("upload", "deploy", "finish"):
            yield job
