"""One request to the process that serves an endpoint's variant: over a unix socket, or a port of the loopback address.

Knows HTTP and what that process answers; which variant is asked, and whether it may be, is for the caller.
"""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from luthier.errors import LuthierError

TIMEOUT = 600.0  # seconds without a byte of the answer
CHUNK = 65536
ATTRIBUTES = "X-Amzn-SageMaker-Custom-Attributes"


class UnreachableError(LuthierError):
    """The process cannot be asked, or went away before it had answered; `timed_out` when it only took too long."""

    wire_code = "ServiceUnavailable"

    def __init__(self, message: str, timed_out: bool = False) -> None:
        super().__init__(message)
        self.timed_out = timed_out


@dataclass(frozen=True, slots=True)
class Answer:
    """What the process answered; `chunks` is its body as it comes, and closes the connection at its end."""

    status: int
    headers: Mapping[str, str]
    chunks: Iterator[bytes] = field(default_factory=lambda: iter(()))

    @property
    def body(self) -> bytes:
        """All of the body."""
        return b"".join(self.chunks)


def ask(address: str, path: str, body: bytes, headers: Mapping[str, str], timeout: float = TIMEOUT) -> Answer:
    """POST `body` to the process at `address` (a socket's path, or host:port); UnreachableError."""
    connection = _connection(address, timeout)
    try:
        connection.request("POST", path, body, dict(headers))
        response = connection.getresponse()
    except (OSError, http.client.HTTPException) as error:
        connection.close()
        raise _unreachable(error) from None
    except BaseException:
        connection.close()
        raise
    found = {name.lower(): value for name, value in response.getheaders()}
    return Answer(response.status, found, _Chunks(connection, response))


def error_of(body: bytes) -> tuple[str, str]:
    """What an answer that is none says: its text, and the kind that the process gives it ("" for another's)."""
    text = body.decode("utf-8", "replace").strip()
    try:
        told = json.loads(text)
        return str(told["error"]), str(told.get("error_type", ""))
    except (ValueError, TypeError, KeyError, RecursionError):
        return text, ""


class _Chunks:
    """The body of an answer, chunk by chunk; its connection is closed with it, read to the end or not."""

    def __init__(self, connection: http.client.HTTPConnection, response: http.client.HTTPResponse) -> None:
        self._connection, self._response = connection, response

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        try:
            chunk = self._response.read1(CHUNK)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise _unreachable(error) from None
        if not chunk:
            self.close()
            raise StopIteration
        return chunk

    def close(self) -> None:
        self._response.close()
        self._connection.close()


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        try:
            self.sock.connect(self._path)
        except BaseException:
            self.sock.close()
            raise


def _connection(address: str, timeout: float) -> http.client.HTTPConnection:
    if address.startswith("/"):
        return _UnixConnection(address, timeout)
    host, _, port = address.rpartition(":")
    return http.client.HTTPConnection(host, int(port), timeout=timeout)


def _unreachable(error: Exception) -> UnreachableError:
    if isinstance(error, TimeoutError):
        return UnreachableError("it did not answer in time", timed_out=True)
    return UnreachableError(f"it cannot be reached ({type(error).__name__})")
