"""A port that leads to another one, after it has failed as often as it is told."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress

BODY = b"<Error><Code>%s</Code><Message>Please reduce your request rate.</Message></Error>"
ANSWERS = {
    "SlowDown": b"HTTP/1.1 503 Slow Down",
    "InternalError": b"HTTP/1.1 500 Internal Server Error",
    "AccessDenied": b"HTTP/1.1 403 Forbidden",
}


class FailingPort:
    """The next `left` connections fail in the way `how` names: reset, break off (of the answer), or a code of S3's."""

    def __init__(self, target: int) -> None:
        self.target, self.how, self.left, self.failed = target, "reset", 0, 0
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def fail(self, how: str, times: int) -> None:
        with self._lock:
            self.how, self.left, self.failed = how, times, 0

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(10)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._threads.append(threading.Thread(target=self._serve, args=(connection,)))
            self._threads[-1].start()

    def _serve(self, connection: socket.socket) -> None:
        """One request on each connection, so that every one can fail."""
        with closing(connection), suppress(OSError):
            head = b""
            while b"\r\n\r\n" not in head:
                if not (piece := connection.recv(65536)):
                    return
                head += piece
            with self._lock:
                failing = self.left > 0
                self.left -= failing
                self.failed += failing
            if failing and self.how == "reset":
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            elif failing and self.how in ANSWERS:
                body = BODY % self.how.encode()
                connection.sendall(ANSWERS[self.how] + b"\r\nConnection: close\r\nContent-Type: application/xml\r\n"
                                   b"Content-Length: %d\r\n\r\n%b" % (len(body), body))  # fmt: skip
            else:
                self._forward(connection, head, broken=failing)

    def _forward(self, connection: socket.socket, head: bytes, broken: bool) -> None:
        with socket.create_connection(("127.0.0.1", self.target), 10) as other:
            other.sendall(head.replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
            back = threading.Thread(target=_copy, args=(other, connection, broken))
            back.start()
            _copy(connection, other, False)
            back.join(10)


def _copy(source: socket.socket, target: socket.socket, broken: bool) -> None:
    """Until an end, or until a few bytes after a head."""
    seen = b""
    with suppress(OSError):
        while data := source.recv(65536):
            seen += data if broken else b""
            if b"\r\n\r\n" in seen:
                target.sendall(seen[: seen.index(b"\r\n\r\n") + 14])
                break
            target.sendall(b"" if broken else data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_RDWR)


@contextmanager
def failing_port(target: int) -> Iterator[FailingPort]:
    port = FailingPort(target)
    try:
        yield port
    finally:
        port.close()
