"""A point that every rank of a machine must reach before any goes on: a byte each way through Unix sockets.

    rank 1, 2, ...  --here-->  rank 0  --all are here-->  rank 1, 2, ...

It takes some tens of microseconds where gloo's barrier takes most of a millisecond, and is waited at hundreds of times
a step (shared_memory_reduce.py). It knows sockets, nothing of what the ranks do.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path

_BYTE = b"."


class Barrier:
    """One rank's end. `others`: rank 0's connections to all, or another rank's to rank 0."""

    def __init__(self, others: Sequence[socket.socket], leads: bool, seconds: float) -> None:
        self._others, self._leads = others, leads
        for other in others:
            other.settimeout(seconds)

    def wait(self) -> None:
        """Return when every rank has called this.

        TimeoutError when one has not within the limit, ConnectionError when one has ended.
        """
        if self._leads:
            self._hear()
            self._say()
        else:
            self._say()
            self._hear()

    def _say(self) -> None:
        for other in self._others:
            other.sendall(_BYTE)

    def _hear(self) -> None:
        for other in self._others:
            if not other.recv(1):
                raise ConnectionResetError("connection closed by another rank")


def listen(path: Path) -> socket.socket:
    """Rank 0's door at `path`, which must not be there yet."""
    door = socket.socket(socket.AF_UNIX)
    door.bind(str(path))
    door.listen()
    return door


def await_others(door: socket.socket, size: int, seconds: float) -> Barrier:
    """Rank 0's end, once all `size` - 1 others have come through the door, which is closed."""
    with door:
        door.settimeout(seconds)
        return Barrier([door.accept()[0] for _ in range(size - 1)], leads=True, seconds=seconds)


def join(path: Path, seconds: float) -> Barrier:
    """Another rank's end, through the door at `path`."""
    way = socket.socket(socket.AF_UNIX)
    way.settimeout(seconds)
    way.connect(str(path))
    return Barrier([way], leads=False, seconds=seconds)
