"""A trainer that runs on its own, held at the end of each step; what lies between two such moments is a step.

Whatever a library calls once a step serves: a callback, a logger. Its first step is over when it says that it is ready.
It runs in the peers' interpreters and imports nothing of Luthier.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any

import torch

from bench.field.line import Line, Stopwatch, peak_rss


class Gate:
    """Counts what a step was given, and lets the coordinator say when the next one begins."""

    def __init__(self, line: Line, facts: Callable[[], dict[str, Any]]) -> None:
        """`facts` is called once, when the trainer is ready: what it says of itself beside its threads."""
        self._line = line
        self._facts = facts
        self._watch = Stopwatch()
        self._started = False
        self._tokens = self._completion_tokens = 0

    def count(self, tokens: int, completion_tokens: int) -> None:
        """Add up what the step that runs was given; padding is none."""
        self._tokens += tokens
        self._completion_tokens += completion_tokens

    def hold(self, loss: float) -> None:
        """Call once a step, at the same place of each; returns when the next one may begin."""
        if self._started:
            self._line.say(**self._watch.read(), tokens=self._tokens, completion_tokens=self._completion_tokens,
                           loss=loss, rss=memory())  # fmt: skip
        else:
            self._line.say(threads=torch.get_num_threads(), **self._facts())
        self._started = True
        self._tokens = self._completion_tokens = 0
        while self._line.wait() != "step":
            self._line.say()
        self._watch.start()


def memory() -> int:
    """The most bytes held: of the GPU where there is one."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else peak_rss()


def versions(names: Sequence[str]) -> dict[str, str]:
    """The versions of those packages that are there."""
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
