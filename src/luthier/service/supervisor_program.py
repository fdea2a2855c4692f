"""The supervisor's door: ``python -P -m luthier.supervisor HOME``, its settings as JSON on stdin (options.py).

It ends when it is asked to (SIGTERM) and when the process that started it is gone: engines write their checkpoints, and
what was at work goes back into the queue.
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
from luthier.service.journal import open_journal
from luthier.service.supervisor_settings import read
from luthier.supervisor.context import LIMITS, DevicePool, SupervisorContext
from luthier.supervisor.lock import alone
from luthier.supervisor.loop import Supervisor, new_owner

_log = logging.getLogger("luthier.supervisor")


def main(arguments: Sequence[str]) -> None:
    """Supervise the home named by `arguments`, until asked to leave."""
    parser = argparse.ArgumentParser(prog="python -m luthier.service.supervisor_program")
    parser.add_argument("home", type=Path, help="the server's home; its settings are read from stdin")
    home: Path = parser.parse_args(arguments).home
    leave = leaving(os.getppid())
    settings = read(home, b"" if sys.stdin.isatty() else sys.stdin.buffer.read())
    os.umask(0o077)
    open_journal(settings.home / "logs" / "supervisor.log")
    with alone(settings.home, leave, _log.warning) as held:
        if held:
            supervise(settings, leave)


def supervise(settings: ServiceSettings, leave: Callable[[], bool]) -> None:
    """Open what is needed and work until `leave` says so."""
    store = Store.open(settings.database_url)
    try:
        objects = open_objects(settings, store)
        try:
            limits = {**LIMITS, **settings.limits}
            context = SupervisorContext(
                settings=settings, store=store, objects=objects, owner=new_owner(), devices=DevicePool(settings.slots),
                launcher=LocalLauncher(), limits=limits,
            )  # fmt: skip
            Supervisor(context).run(leave)
        finally:
            objects.close()
    finally:
        store.close()


def open_objects(settings: ServiceSettings, store: Store) -> ObjectStore:
    """The objects where the server keeps them."""
    if settings.objects:
        return RemoteObjectStore(settings.objects)
    return EmbeddedObjectStore(store.engine, settings.home / "objects")


def leaving(parent: int) -> Callable[[], bool]:
    """Whether it is time to leave: after SIGTERM or SIGINT, or when `parent` is gone. To be asked again and again."""
    asked = False

    def on_signal(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = True

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    return lambda: asked or os.getppid() != parent


if __name__ == "__main__":
    entrypoint.run(lambda: main(sys.argv[1:]))
