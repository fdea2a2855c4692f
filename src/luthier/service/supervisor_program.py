"""The supervisor's program: ``python -P -m luthier.service.supervisor_program HOME``, its settings as JSON on stdin.

It exits on SIGTERM and when its parent has ended: engines write their checkpoints, running jobs return to the queue.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

from luthier import entrypoint
from luthier.jobs.settings import ServiceSettings
from luthier.jobs.store import Store
from luthier.launchers.local import LocalLauncher
from luthier.objects.remote_store import RemoteObjectStore
from luthier.objects.store import EmbeddedObjectStore, ObjectStore
from luthier.service.journal import configure_logging
from luthier.service.supervisor_settings import decode_settings
from luthier.supervisor.context import LIMITS, DevicePool, SupervisorContext
from luthier.supervisor.lock import supervisor_lock
from luthier.supervisor.loop import Supervisor, new_owner

_log = logging.getLogger("luthier.supervisor")


def main(arguments: Sequence[str]) -> None:
    """Supervise the home named by `arguments` until told to exit."""
    parser = argparse.ArgumentParser(prog="python -m luthier.service.supervisor_program")
    parser.add_argument("home", type=Path, help="the server's home; its settings are read from stdin")
    home: Path = parser.parse_args(arguments).home
    should_exit = watch_exit(os.getppid())
    settings = decode_settings(home, b"" if sys.stdin.isatty() else sys.stdin.buffer.read())
    os.umask(0o077)
    configure_logging(settings.home / "logs" / "supervisor.log")
    with supervisor_lock(settings.home, should_exit, _log.warning) as is_held:
        if is_held:
            supervise(settings, should_exit)


def supervise(settings: ServiceSettings, should_exit: Callable[[], bool]) -> None:
    """Open the stores and run the supervisor until `should_exit`."""
    store = Store.open(settings.database_url)
    try:
        objects = open_objects(settings, store)
        try:
            limits = {**LIMITS, **settings.limits}
            context = SupervisorContext(
                settings=settings, store=store, objects=objects, owner=new_owner(), devices=DevicePool(settings.slots),
                launcher=LocalLauncher(), limits=limits,
            )  # fmt: skip
            Supervisor(context).run(should_exit)
        finally:
            objects.close()
    finally:
        store.close()


def open_objects(settings: ServiceSettings, store: Store) -> ObjectStore:
    """The object store of the server: external or embedded."""
    if settings.objects:
        return RemoteObjectStore(settings.objects)
    return EmbeddedObjectStore(store.engine, settings.home / "objects")


def watch_exit(parent: int) -> Callable[[], bool]:
    """A function that returns whether to exit: after SIGTERM or SIGINT, or once `parent` has ended."""
    is_signalled = False

    def on_signal(number: int, frame: FrameType | None) -> None:
        nonlocal is_signalled
        is_signalled = True

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    return lambda: is_signalled or os.getppid() != parent


if __name__ == "__main__":
    entrypoint.run(lambda: main(sys.argv[1:]))
