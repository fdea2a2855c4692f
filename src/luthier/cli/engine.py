"""Handing over to the engine: a room of Luthier run as its own Python program on the same terminal.

    luthier tune ...  ->  Call("luthier.training", ["runs/x"])  ->  python -P -m luthier.training runs/x

A command function only *returns* its Call; `main` hands over at the very end. The program then takes this process's
place (exec), so signals, Ctrl-C, kill -9 and the exit code reach the engine and the caller with nobody in between.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from luthier.allocator import preload


@dataclass(frozen=True, slots=True)
class Call:
    """One room to run: its module, its arguments, and one JSON request for its standard input (None: inherited)."""

    module: str
    arguments: tuple[str, ...] = ()
    request: Mapping[str, Any] | None = None

    @property
    def argv(self) -> list[str]:
        """The whole command line; -P keeps a `torch.py` lying in the current folder from being imported."""
        return [sys.executable, "-P", "-m", self.module, *self.arguments]


def hand_over(call: Call) -> NoReturn:
    """Become the engine: replace this process, with the request as standard input."""
    sys.stdout.flush()
    sys.stderr.flush()
    if call.request is not None:
        # A file, not a pipe: it holds a request of any size with nobody left to feed it.
        with tempfile.TemporaryFile() as handle:
            handle.write(json.dumps(call.request).encode())
            handle.seek(0)
            os.dup2(handle.fileno(), 0)
    os.execve(sys.executable, call.argv, {**os.environ, **preload(os.environ)})  # noqa: S606 - no shell is wanted
