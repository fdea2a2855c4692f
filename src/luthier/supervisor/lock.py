"""One supervisor at a time per home, by a file lock that ends with its holder."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def supervisor_lock(home: Path, should_exit: Callable[[], bool], warn: Callable[[str], None]) -> Iterator[bool]:
    """Wait for the home's lock: True once any other supervisor has ended, False when `should_exit` came first."""
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    with open(home / "supervisor.lock", "a+") as handle:
        has_warned = False
        while not should_exit():
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not has_warned:
                    handle.seek(0)
                    warn(f"waiting for supervisor {handle.read().strip() or '?'} of {home} to end")
                    has_warned = True
                time.sleep(0.1)
                continue
            handle.seek(0)
            handle.truncate()
            handle.write(f"{os.getpid()}\n")
            handle.flush()
            yield True
            return
        yield False
