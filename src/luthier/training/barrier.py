"""A barrier for the ranks of one machine: one byte each way through Unix sockets.

    rank 1, 2, ...  --arrived-->  rank 0  --all arrived-->  rank 1, 2, ...

It takes tens of microseconds, where gloo's barrier takes almost a millisecond, and is used hundreds of times per
step (shared_memory_reduce.py). This module depends on sockets only.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path

_BYTE = b"."


class Barrier:
    """One rank's end. `peers`: rank 0's connections to all others, or another rank's one connection to rank 0."""

    def __init__(self, peers: Sequence[socket.socket], is_main: bool, timeout: float) -> None:
        self._peers, self._is_main = peers, is_main
        for peer in peers:
            peer.settimeout(timeout)

    def wait(self) -> None:
        """Return when every rank has called this.

        TimeoutError when a rank does not arrive within the timeout, ConnectionError when one has exited.
        """
        if self._is_main:
            self._receive()
            self._send()
        else:
            self._send()
            self._receive()

    def _send(self) -> None:
        for peer in self._peers:
            peer.sendall(_BYTE)

    def _receive(self) -> None:
        for peer in self._peers:
            if not peer.recv(1):
                raise ConnectionResetError("connection closed by another rank")


def listen(path: Path) -> socket.socket:
    """Rank 0's listening socket at `path`, which must not exist yet."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    return listener


def accept_ranks(listener: socket.socket, world_size: int, timeout: float) -> Barrier:
    """Rank 0's end, once all `world_size` - 1 others have connected; closes the listener."""
    with listener:
        listener.settimeout(timeout)
        return Barrier([listener.accept()[0] for _ in range(world_size - 1)], is_main=True, timeout=timeout)


def connect(path: Path, timeout: float) -> Barrier:
    """Another rank's end, connected to rank 0's socket at `path`."""
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(timeout)
    connection.connect(str(path))
    return Barrier([connection], is_main=False, timeout=timeout)
