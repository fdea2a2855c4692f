"""A file of JSON lines, addressed by offsets that stay valid when the oldest lines are dropped.

    {"dropped": "000000000000123456"}                   dropped bytes; only in a file that was shortened
    {"timestamp": ms since 1970, "message": line, ...}

The offset of a line counts dropped bytes and not the first line above. One process writes; readers see the file as it
was when they opened it.
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
"""Offset of the line, offset of the next line, the line."""

_HEAD = b'{"dropped": "%018d"}\n'
_HEAD_START, _HEAD_SIZE = _HEAD[:13], len(_HEAD % 0)


@dataclass(frozen=True, slots=True)
class Lines:
    """Complete lines of the file at `path`, which may be missing; one call reads at most `max_bytes` and a line."""

    path: Path
    max_bytes: int | None = None

    def after(self, start: int, high: int, limit: int | None = None) -> Iterator[Line]:
        """Yield at most `limit` lines from the one at `start` on that begin before `high`."""
        size = 0
        with _opened(self.path) as file:
            if file is None:
                return
            offset = file.line_start(start)
            for count, line in enumerate(file.read_from(offset)):
                end = offset + len(line)
                size += len(line)
                full = self.max_bytes is not None and count and size > self.max_bytes
                if offset >= high or full or (limit is not None and count >= limit) or not line.endswith(b"\n"):
                    return
                yield offset, end, line
                offset = end

    def before(self, end: int, low: int, limit: int) -> list[Line]:
        """Return the last `limit` lines between the offsets `low` and `end`, in order."""
        lines: list[Line] = []
        size = 0
        with _opened(self.path) as file:
            if file is None:
                return lines
            end, low = min(end, file.end), max(low, file.first)
            while end > low and len(lines) < limit:
                start = file.line_start(end - 1)
                line = file.read(start, end - start)
                size += len(line)
                if start < low or (self.max_bytes is not None and lines and size > self.max_bytes):
                    break
                if line.endswith(b"\n"):
                    lines.append((start, end, line))
                end = start
        return lines[::-1]

    def bounds(self, start: int | None = None, end: int | None = None) -> tuple[int, int]:
        """Return the offsets of the events with `start` <= time < `end`, by binary search."""
        with _opened(self.path) as file:
            if file is None:
                return 0, 0
            low = file.first if start is None else file.first_at(start)
            return low, file.end if end is None else file.first_at(end)


def drop_oldest(path: Path, min_bytes: int) -> None:
    """Atomically drop the oldest lines of a file, keeping the fewest lines that have at least `min_bytes`."""
    temporary = path.with_name(f".{path.name}.shorter")
    with _opened(path) as file:
        if file is None or file.end - file.first <= min_bytes:
            return
        start = file.line_start(file.end - min_bytes)
        with open(temporary, "wb") as shorter:
            shorter.write(_HEAD % start)
            shorter.writelines(file.read_from(start))
    temporary.replace(path)


@contextmanager
def _opened(path: Path) -> Iterator[_File | None]:
    try:
        handle = open(path, "rb")  # noqa: SIM115 - closed below
    except (FileNotFoundError, NotADirectoryError):  # deleted since its path was read
        yield None
        return
    with handle:
        yield _File(handle)


class _File:
    """An open file; `first` is the offset of its first line, `end` the offset after its last byte."""

    def __init__(self, handle: IO[bytes]) -> None:
        self._handle = handle
        head = os.pread(handle.fileno(), _HEAD_SIZE, 0)
        dropped = int(head[len(_HEAD_START) : -3]) if head.startswith(_HEAD_START) else None
        self.first = dropped or 0
        self._shift = 0 if dropped is None else dropped - _HEAD_SIZE  # from a position in the file to an offset
        self.end = max(self.first, os.fstat(handle.fileno()).st_size + self._shift)

    def read(self, offset: int, size: int) -> bytes:
        return os.pread(self._handle.fileno(), size, offset - self._shift)

    def read_from(self, offset: int) -> Iterator[bytes]:
        self._handle.seek(offset - self._shift)
        return iter(self._handle)

    def line_start(self, offset: int) -> int:
        """Return the start of the line with the byte at `offset`; `first` for an earlier offset."""
        end = offset
        while end > self.first:
            start = max(self.first, end - 4096)
            newline = self.read(start, end - start).rfind(b"\n")
            if newline >= 0:
                return start + newline + 1
            end = start
        return self.first

    def first_at(self, time: int) -> int:
        """Return the offset of the first line whose time is not before `time`; `end` if there is none."""
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
