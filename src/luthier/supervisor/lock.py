"""One supervisor at a time for each home, by a lock that dies with its holder."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def alone(home: Path, leave: Callable[[], bool], heed: Callable[[str], None]) -> Iterator[bool]:
    """Hold the home's lock: True, once any other supervisor has ended, which may take its checkpoints. False: left."""
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    with open(home / "supervisor.lock", "a+") as handle:
        said = False
        while not leave():
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not said:
                    handle.seek(0)
                    heed(f"waiting for supervisor {handle.read().strip() or '?'} of {home} to end")
                    said = True
                time.sleep(0.1)
                continue
            handle.seek(0)
            handle.truncate()
            handle.write(f"{os.getpid()}\n")
            handle.flush()
            yield True
            return
        yield False
