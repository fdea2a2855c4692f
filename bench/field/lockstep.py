"""The coordinator: it keeps one process alive for each contender and lets exactly one of them take a step at a time.

    round 1   A  B  C        every contender steps once, the others wait
    round 2   B  C  A        who starts moves on, so that no place in the round is anybody's own

So all of them meet the same machine: what else runs on it slows each round for all. A contender is a program that
says a JSON line when it is ready, and one for each word it reads (line.py). It knows processes, nothing of models.
"""

from __future__ import annotations

import json
import select
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

PATIENCE = 1800.0  # seconds for one answer; loading a model, and the first step, may compile


class ContenderError(Exception):
    """A contender ended, or did not answer: its own last words."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A contender before it runs."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    folder: Path  # the working folder
    log: Path  # its stderr


@dataclass(frozen=True, slots=True)
class Step:
    """One step: seconds, tokens without padding, those that carry loss, loss in nats a token, peak memory in bytes."""

    wall: float
    cpu: float
    tokens: int
    completion_tokens: int
    loss: float
    rss: int


@dataclass(slots=True)
class Record:
    """What a contender did: the steps after its warm-up, or the reason why there are none; `crowded`: lack of room."""

    name: str
    facts: dict[str, Any] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    peaks: list[dict[str, float]] = field(default_factory=list)
    reason: str = ""
    crowded: bool = False


class Contender:
    """A running contender. Raises ContenderError from any method when its process fails."""

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        entry.log.parent.mkdir(parents=True, exist_ok=True)
        with open(entry.log, "wb") as log:
            self._process = subprocess.Popen(
                entry.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
                env=dict(entry.environment), cwd=entry.folder,
            )  # fmt: skip

    def ready(self) -> dict[str, Any]:
        """Wait until it could take a step; what it says of itself."""
        return self._answer()

    def step(self) -> Step:
        """Let it take one step."""
        return Step(**self.ask("step"))

    def ask(self, word: str) -> dict[str, Any]:
        """Say a word, wait for its answer."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(word + "\n")
            self._process.stdin.flush()
        except OSError:
            raise ContenderError(self._last_words()) from None
        return self._answer()

    @property
    def rss(self) -> int:
        """Bytes of memory it holds now."""
        try:
            return int(psutil.Process(self._process.pid).memory_info().rss)
        except psutil.Error:
            return 0

    def end(self) -> None:
        """End the process; nothing of it is left."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.close()
            self._process.wait(5)
        except (OSError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        heard, _, _ = select.select([self._process.stdout], [], [], PATIENCE)
        if not heard:
            raise ContenderError(f"no answer in {PATIENCE:.0f} s")
        text = self._process.stdout.readline()
        if not text:
            raise ContenderError(self._last_words())
        answer: dict[str, Any] = json.loads(text)
        return answer

    def _last_words(self) -> str:
        code = self._process.wait()
        said = [line.strip() for line in self.entry.log.read_text("utf-8", "replace").splitlines() if line.strip()]
        return f"ended with code {code}" + (f": {said[-1][:300]}" if said else "") + f" (all of it: {self.entry.log})"


def race(
    entries: Sequence[Entry],
    rounds: int,
    warm_up: int,
    budget: float,
    say: Callable[[str], None],
    words: Sequence[str] = (),
) -> list[Record]:
    """Run the contenders in lock step; the steps of `rounds` rounds after `warm_up` ones are kept.

    `budget`: bytes that all of them together may hold; the largest one leaves when they hold more. The first entry is
    also asked the `words` once a round. A contender that fails leaves with its reason, the others go on.
    """
    records = {entry.name: Record(entry.name) for entry in entries}
    running: dict[str, Contender] = {}

    def leave(name: str, reason: str) -> None:
        records[name].reason = reason
        records[name].steps.clear()
        running.pop(name).end()
        say(f"{name} leaves: {reason}")

    try:
        for entry in entries:
            running[entry.name] = Contender(entry)
            try:
                records[entry.name].facts = running[entry.name].ready()
            except ContenderError as error:
                leave(entry.name, str(error))
        for number in range(warm_up + rounds):
            for name in _turned([entry.name for entry in entries if entry.name in running], number):
                try:
                    step = running[name].step()
                    run_options = {word: running[name].ask(word) for word in words} if name == entries[0].name else {}
                except ContenderError as error:
                    leave(name, str(error))
                    continue
                if number >= warm_up:
                    records[name].steps.append(step)
                    records[name].peaks += run_options.values()
            held = {name: contender.rss for name, contender in running.items()}
            if sum(held.values()) > budget and len(held) > 1:
                largest = max((name for name in held if name != entries[0].name), key=lambda name: held[name])
                leave(largest, f"together they held {sum(held.values()) / 1e9:.1f} GB, of {budget / 1e9:.1f} allowed")
                records[largest].crowded = True
            say(f"round {number + 1} of {warm_up + rounds}: " + _brief(records))
    finally:
        for contender in running.values():
            contender.end()
    return list(records.values())


def _turned(names: list[str], number: int) -> list[str]:
    cut = number % len(names) if names else 0
    return names[cut:] + names[:cut]


def _brief(records: Mapping[str, Record]) -> str:
    last = {name: record.steps[-1] for name, record in records.items() if record.steps}
    return ", ".join(f"{name} {step.tokens / step.wall:,.0f} tok/s" for name, step in last.items()) or "warming up"
