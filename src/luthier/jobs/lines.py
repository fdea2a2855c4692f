"""A file of events, a JSON line each, by places that stay a line's own when the oldest lines are dropped.

    {"dropped": "000000000000123456"}                   the bytes that were dropped; there once any were
    {"timestamp": ms since 1970, "message": line, ...}

One process writes, any number read, each in the file as it was when it opened it. Knows nothing of whose events they
are.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

Line = tuple[int, int, bytes]
"""Where the line begins, where the next one does, the line."""

_HEAD = b'{"dropped": "%018d"}\n'
_HEAD_START, _HEAD_SIZE = _HEAD[:13], len(_HEAD % 0)


@dataclass(frozen=True, slots=True)
class Lines:
    """The whole lines of the file at `path`, which need not be there; one call reads `most` bytes and a line."""

    path: Path
    most: int | None = None

    def after(self, start: int, high: int, limit: int | None = None) -> Iterator[Line]:
        """Lines from the one at `start` on, of those that begin before `high`; at most `limit`."""
        size = 0
        with _opened(self.path) as file:
            if file is None:
                return
            place = file.line_start(start)
            for count, line in enumerate(file.read_from(place)):
                end = place + len(line)
                size += len(line)
                full = self.most is not None and count and size > self.most
                if place >= high or full or (limit is not None and count >= limit) or not line.endswith(b"\n"):
                    return
                yield place, end, line
                place = end

    def before(self, end: int, low: int, limit: int) -> list[Line]:
        """The last lines that end at or before `end` and begin at or after `low`, in order; at most `limit`."""
        found: list[Line] = []
        size = 0
        with _opened(self.path) as file:
            if file is None:
                return found
            end, low = min(end, file.end), max(low, file.first)
            while end > low and len(found) < limit:
                start = file.line_start(end - 1)
                line = file.read(start, end - start)
                size += len(line)
                if start < low or (self.most is not None and found and size > self.most):
                    break
                if line.endswith(b"\n"):
                    found.append((start, end, line))
                end = start
        return found[::-1]

    def bounds(self, start: int | None = None, end: int | None = None) -> tuple[int, int]:
        """Where the events from the time `start` on begin, and where those before `end` do end; found by halving."""
        with _opened(self.path) as file:
            if file is None:
                return 0, 0
            low = file.first if start is None else file.first_at(start)
            return low, file.end if end is None else file.first_at(end)


def drop_oldest(path: Path, kept: int) -> None:
    """Drop the oldest lines of a file so that at least `kept` bytes of lines stay, and hardly more. All or nothing."""
    temporary = path.with_name(f".{path.name}.shorter")
    with _opened(path) as file:
        if file is None or file.end - file.first <= kept:
            return
        start = file.line_start(file.end - kept)
        with open(temporary, "wb") as shorter:
            shorter.write(_HEAD % start)
            shorter.writelines(file.read_from(start))
    temporary.replace(path)


@contextmanager
def _opened(path: Path) -> Iterator[_File | None]:
    try:
        handle = open(path, "rb")  # noqa: SIM115 - closed below
    except (FileNotFoundError, NotADirectoryError):  # deleted, with its owner, since it was found
        yield None
        return
    with handle:
        yield _File(handle)


class _File:
    """An open file; `first` is the place of its first line, `end` the place after its last byte."""

    def __init__(self, handle: IO[bytes]) -> None:
        self._handle = handle
        head = os.pread(handle.fileno(), _HEAD_SIZE, 0)
        dropped = int(head[len(_HEAD_START) : -3]) if head.startswith(_HEAD_START) else None
        self.first = dropped or 0
        self._shift = 0 if dropped is None else dropped - _HEAD_SIZE  # from a position in the file to a place
        self.end = max(self.first, os.fstat(handle.fileno()).st_size + self._shift)

    def read(self, place: int, size: int) -> bytes:
        return os.pread(self._handle.fileno(), size, place - self._shift)

    def read_from(self, place: int) -> Iterator[bytes]:
        self._handle.seek(place - self._shift)
        return iter(self._handle)

    def line_start(self, place: int) -> int:
        """Where the line that holds the byte at `place` begins; the first line for a place before it."""
        end = place
        while end > self.first:
            start = max(self.first, end - 4096)
            found = self.read(start, end - start).rfind(b"\n")
            if found >= 0:
                return start + found + 1
            end = start
        return self.first

    def first_at(self, time: int) -> int:
        """Where the first line of a time not before `time` begins; the end where there is none."""
        low, high = self.first, self.end
        while low < high:
            middle = self.line_start((low + high) // 2)
            line = self._line_at(middle)
            if not line.endswith(b"\n") or json.loads(line)["timestamp"] >= time:
                high = middle
            else:
                low = middle + len(line)
        return low

    def _line_at(self, start: int) -> bytes:
        parts = []
        while True:
            part = self.read(start, 65536)
            end = part.find(b"\n") + 1
            parts.append(part[:end] if end else part)
            if end or not part:
                return b"".join(parts)
            start += len(part)
