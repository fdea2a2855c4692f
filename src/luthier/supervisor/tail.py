"""An engine's log as events: each line with the time at which it was seen, exactly once across restarts.

    events.jsonl    {"timestamp": ms since 1970, "message": line, "offset": bytes of the log that end with it}

The offset of the last event says where to go on, so no second file can disagree with the events. For a long-lived
process both files are bounded: the log is truncated once all of it is in the events, and the oldest events are dropped.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from luthier.jobs.lines import drop_oldest

LONGEST = 256 * 1024  # bytes of one event, as in CloudWatch Logs; a longer line is several events
_AT_ONCE = 4 << 20


class EventLog:
    """Follows the file `log` and appends to the file `events`; either may not be there yet.

    Of the events, at least the last `kept` bytes are kept, and twice that at most; None: all of them.
    """

    def __init__(self, log: Path, events: Path, kept: int | None = None) -> None:
        self._log, self._events, self._kept = log, events, kept
        self.offset, self._stamp = _read_position(events)
        if self.offset > self._size():  # truncated, and killed before that was recorded
            self.offset = 0
        self._last = ""

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
        lines = []
        for line in _lines(data):
            offset += len(line)
            lines.append((line.rstrip(b"\r\n").decode("utf-8", "replace"), offset))
        self._append(lines)
        self._last = next((text.strip() for text, _ in reversed(lines) if text.strip()), self._last)
        return len(lines)

    def truncate_log(self) -> bool:
        """Truncate the log if all of it is in the events; whether it was. Nobody may write to it meanwhile."""
        while self.follow():
            pass
        if self.offset != self._size():
            return False  # it ends in the midst of a line
        size, self.offset = self.offset, 0
        os.truncate(self._log, 0)
        self.append(f"supervisor: the log file was truncated after {size:,} bytes; all of its lines are above")
        return True

    def _size(self) -> int:
        return self._log.stat().st_size if self._log.is_file() else 0

    def append(self, *messages: str) -> None:
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
        return next((line.strip() for line in reversed(lines) if line.strip()), self._last)

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
        if self._kept is not None and whole + len(text) > 2 * self._kept:
            drop_oldest(self._events, self._kept)


def _lines(data: bytes) -> Iterator[bytes]:
    for line in data.splitlines(keepends=True):
        for start in range(0, len(line), LONGEST):
            yield line[start : start + LONGEST]


def _read_position(events: Path) -> tuple[int, int]:
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
    return int(last.get("offset", 0)), int(last.get("timestamp", 0))
