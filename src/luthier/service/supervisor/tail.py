"""An engine's log as events: each line with the time at which it was seen, exactly once across restarts.

    events.jsonl    {"timestamp": ms since 1970, "message": line, "offset": bytes of the log that end with it}

The offset of the last event says where to go on, so no second file can disagree with the events.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

LONGEST = 256 * 1024  # bytes of one event, as in CloudWatch Logs; a longer line is several events
_AT_ONCE = 4 << 20


class EventLog:
    """Follows the file `log` and appends to the file `events`; either may not be there yet."""

    def __init__(self, log: Path, events: Path) -> None:
        self._log, self._events = log, events
        self.offset, self._stamp = _settle(events)

    def follow(self, last: bool = False) -> int:
        """Take over what the log has gained; return how many events that were.

        A line without an end is left for the next time, unless this is the `last`. At most a few MB at once: call again
        until 0 is returned.
        """
        try:
            with open(self._log, "rb") as handle:
                handle.seek(self.offset)
                data = handle.read(_AT_ONCE)
        except FileNotFoundError:
            return 0
        if not last:
            data = data[: data.rfind(b"\n") + 1] or data[:LONGEST] * (len(data) >= LONGEST)
        offset = self.offset
        found = []
        for line in _lines(data):
            offset += len(line)
            found.append((line.rstrip(b"\r\n").decode("utf-8", "replace"), offset))
        self._append(found)
        return len(found)

    def say(self, *messages: str) -> None:
        """Add lines of the supervisor's own."""
        self._append([(message, self.offset) for message in messages])

    def last_line(self) -> str:
        """The last line of the log that says something, or an empty string."""
        try:
            with open(self._log, "rb") as handle:
                handle.seek(max(0, handle.seek(0, os.SEEK_END) - 8192))
                lines = handle.read().decode("utf-8", "replace").splitlines()
        except FileNotFoundError:
            return ""
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    def _append(self, messages: Sequence[tuple[str, int]]) -> None:
        self._stamp = max(self._stamp, int(time.time() * 1000))  # events are read by time: it never goes back
        if not messages:
            return
        text = "".join(
            json.dumps({"timestamp": self._stamp, "message": message, "offset": offset}, ensure_ascii=False) + "\n"
            for message, offset in messages
        )
        self._events.parent.mkdir(parents=True, exist_ok=True)
        whole = self._events.stat().st_size if self._events.exists() else 0
        try:
            with open(self._events, "ab") as handle:
                handle.write(text.encode("utf-8", "replace"))
        except OSError:
            os.truncate(self._events, whole)  # a full disk: none of these, rather than half of one
            raise
        self.offset = messages[-1][1]


def _lines(data: bytes) -> Iterator[bytes]:
    for line in data.splitlines(keepends=True):
        for start in range(0, len(line), LONGEST):
            yield line[start : start + LONGEST]


def _settle(events: Path) -> tuple[int, int]:
    """Cut off a last event that a kill left torn; return offset and timestamp of the last whole one."""
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
    return int(last["offset"]), int(last["timestamp"])
