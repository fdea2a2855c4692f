"""A contender's line to the coordinator: words come in on stdin, one JSON line goes out for each.

    in     step | peak | ...        out    {"wall": 1.2, "cpu": 1.1, "tokens": 1700, ...}

What libraries print goes to stderr, so that the line carries answers only. It knows nothing of models; it runs in the
peers' interpreters, too, and needs nothing but the standard library.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from dataclasses import dataclass
from typing import Any


class Line:
    """Make one before anything is printed."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)

    def say(self, **facts: Any) -> None:
        """Answer."""
        self._out.write(json.dumps(facts) + "\n")

    def wait(self) -> str:
        """The next word. Where the coordinator is done, this process ends: a trainer in mid-run has no way out."""
        word = sys.stdin.readline().strip()
        if not word:
            os._exit(0)
        return word


@dataclass(slots=True)
class Stopwatch:
    """Seconds on the clock and of this process's processors since `start`."""

    _wall: float = 0.0
    _cpu: float = 0.0

    def start(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def read(self) -> dict[str, float]:
        return {"wall": time.perf_counter() - self._wall, "cpu": time.process_time() - self._cpu}


def peak_rss() -> int:
    """Bytes of memory this process has held at most."""
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
