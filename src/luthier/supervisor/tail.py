"""Converts an engine's log to events: each line once, also across restarts, with the time at which it was read.

    events.jsonl    {"timestamp": ms since 1970, "message": line, "offset": bytes of the log that end with it}

Reading continues at the offset of the last event, so no second file can disagree with the events. For a long-lived
process both files are bounded: the log is truncated once all of it is in the events, and the oldest events are dropped.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from luthier.jobs.lines import drop_oldest

MAX_EVENT_BYTES = 256 * 1024  # as in CloudWatch Logs; a longer line becomes several events
_MAX_READ = 4 << 20


class EventLog:
    """Follows the file `log` and appends to the file `events`; either may be missing at first.

    Keeps between `min_bytes` and twice that of the latest events; None: all events.
    """

    def __init__(self, log: Path, events: Path, min_bytes: int | None = None) -> None:
        self._log, self._events, self._min_bytes = log, events, min_bytes
        self.offset, self._stamp = _read_position(events)
        if self.offset > self._size():  # truncated, and killed before that was recorded
            self.offset = 0
        self._last = ""

    def follow(self, last: bool = False) -> int:
        """Append new lines of the log to the events; return how many.

        An incomplete line is left for the next call, unless this is the `last`. One call reads at most a few MB: call
        again until it returns 0.
        """
        try:
            with open(self._log, "rb") as handle:
                handle.seek(self.offset)
                data = handle.read(_MAX_READ)
        except FileNotFoundError:
            return 0
        if not last:
            data = data[: data.rfind(b"\n") + 1] or data[:MAX_EVENT_BYTES] * (len(data) >= MAX_EVENT_BYTES)
        offset = self.offset
        lines = []
        for line in _lines(data):
            offset += len(line)
            lines.append((line.rstrip(b"\r\n").decode("utf-8", "replace"), offset))
        self._append(lines)
        self._last = next((text.strip() for text, _ in reversed(lines) if text.strip()), self._last)
        return len(lines)

    def truncate_log(self) -> bool:
        """Truncate the log if all of it is in the events; return whether it was. No process may write meanwhile."""
        while self.follow():
            pass
        if self.offset != self._size():
            return False  # it ends with an incomplete line
        size, self.offset = self.offset, 0
        os.truncate(self._log, 0)
        self.append(f"supervisor: the log file was truncated after {size:,} bytes; all of its lines are above")
        return True

    def _size(self) -> int:
        return self._log.stat().st_size if self._log.is_file() else 0

    def append(self, *messages: str) -> None:
        """Add the supervisor's own lines."""
        self._append([(message, self.offset) for message in messages])

    def last_line(self) -> str:
        """The last line of the log that is not blank; "" if there is none."""
        try:
            with open(self._log, "rb") as handle:
                handle.seek(max(0, handle.seek(0, os.SEEK_END) - 8192))
                lines = handle.read().decode("utf-8", "replace").splitlines()
        except FileNotFoundError:
            return ""
        return next((line.strip() for line in reversed(lines) if line.strip()), self._last)

    def _append(self, messages: Sequence[tuple[str, int]]) -> None:
        self._stamp = max(self._stamp, int(time.time() * 1000))  # readers rely on ascending times
        if not messages:
            return
        text = "".join(
            json.dumps({"timestamp": self._stamp, "message": message, "offset": offset}, ensure_ascii=False) + "\n"
            for message, offset in messages
        )
        self._events.parent.mkdir(parents=True, exist_ok=True)
        size = self._events.stat().st_size if self._events.exists() else 0
        try:
            with open(self._events, "ab") as handle:
                handle.write(text.encode("utf-8", "replace"))
        except OSError:
            os.truncate(self._events, size)  # a full disk: write no events rather than an incomplete one
            raise
        self.offset = messages[-1][1]
        if self._min_bytes is not None and size + len(text) > 2 * self._min_bytes:
            drop_oldest(self._events, self._min_bytes)


def _lines(data: bytes) -> Iterator[bytes]:
    for line in data.splitlines(keepends=True):
        for start in range(0, len(line), MAX_EVENT_BYTES):
            yield line[start : start + MAX_EVENT_BYTES]


def _read_position(events: Path) -> tuple[int, int]:
    """Remove an incomplete last event, left by a kill; return offset and timestamp of the last complete one."""
    try:
        with open(events, "r+b") as handle:
            size = handle.seek(0, os.SEEK_END)
            block, end = b"", size
            while end and block.count(b"\n") < 2:
                start = max(0, end - 65536)
                handle.seek(start)
                block = handle.read(end - start) + block
                end = start
            whole = block.rfind(b"\n") + 1
            if whole < len(block):
                handle.truncate(size - len(block) + whole)
            lines = block[:whole].splitlines()
    except FileNotFoundError:
        return 0, 0
    if not lines:
        return 0, 0
    last = json.loads(lines[-1])
    return int(last.get("offset", 0)), int(last.get("timestamp", 0))
