"""Starts another Luthier program in place of the command line, on the same terminal.

    luthier tune ...  ->  Program("luthier.training", ("runs/x",))  ->  python -P -m luthier.training runs/x

A command function only returns its Program; `app.main` executes it at the very end. The program replaces this process
(exec), so signals, Ctrl-C, kill -9 and the exit code pass between caller and program directly.
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
class Program:
    """A module to run: its name, its arguments, and a JSON request for its standard input (None: inherit stdin)."""

    module: str
    arguments: tuple[str, ...] = ()
    request: Mapping[str, Any] | None = None

    @property
    def argv(self) -> list[str]:
        """The command line; -P keeps a `torch.py` in the current folder from being imported."""
        return [sys.executable, "-P", "-m", self.module, *self.arguments]


def exec_program(program: Program) -> NoReturn:
    """Replace this process by `program`, with the request as its standard input."""
    sys.stdout.flush()
    sys.stderr.flush()
    if program.request is not None:
        # A file instead of a pipe: it holds a request of any size, and no process has to write into it.
        with tempfile.TemporaryFile() as handle:
            handle.write(json.dumps(program.request).encode())
            handle.seek(0)
            os.dup2(handle.fileno(), 0)
    os.execve(sys.executable, program.argv, {**os.environ, **preload(os.environ)})  # noqa: S606 - needs no shell
