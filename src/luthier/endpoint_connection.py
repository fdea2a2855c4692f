"""HTTP connections to the process that serves an endpoint's variant, kept alive between requests.

Knows addresses (a unix socket's path, or HOST:PORT) and HTTP; which variant is invoked, and by whom, is the caller's.
"""

from __future__ import annotations

import http.client
import select
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from types import TracebackType

from luthier.errors import LuthierError

TIMEOUT = 600.0  # seconds without a byte of the response
IDLE_SECONDS = 60.0  # that an unused connection is kept: less than the process keeps it (75)
MAX_IDLE = 32  # connections, over all addresses
CHUNK = 65536


class EndpointUnreachableError(LuthierError):
    """The process does not accept a request, or broke off its response; `timed_out` when it only took too long."""

    wire_code = "ServiceUnavailable"

    def __init__(self, message: str, timed_out: bool = False) -> None:
        super().__init__(message)
        self.timed_out = timed_out


class EndpointConnection(http.client.HTTPConnection):
    """One HTTP connection to the process at `address`."""

    def __init__(self, address: str, timeout: float) -> None:
        self.address = address
        self.idle_since = 0.0
        host, _, port = ("localhost", "", "80") if address.startswith("/") else address.rpartition(":")
        super().__init__(host, int(port), timeout=timeout)

    def connect(self) -> None:
        if not self.address.startswith("/"):
            super().connect()
            return
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        try:
            self.sock.connect(self.address)
        except BaseException:
            self.close()
            raise

    @property
    def is_stale(self) -> bool:
        """Whether an unused connection is too old, or was closed by the process (it is readable then)."""
        if self.sock is None or time.monotonic() - self.idle_since > IDLE_SECONDS:
            return True
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        return bool(poll.poll(0))


class EndpointResponse(Iterator[bytes]):
    """A response; iterating yields its body as it arrives. Read to the end, its connection is used again; closed
    earlier, it is not."""

    def __init__(
        self, pool: EndpointConnections, connection: EndpointConnection, response: http.client.HTTPResponse
    ) -> None:
        self.status = response.status
        self.headers = {name.lower(): value for name, value in response.getheaders()}
        self._pool, self._connection, self._response = pool, connection, response
        self._is_done = False

    def read(self) -> bytes:
        """The rest of the body."""
        return b"".join(self)

    def __next__(self) -> bytes:
        if self._is_done:
            raise StopIteration
        try:
            chunk = self._response.read1(CHUNK)
            if not chunk and self._response.length:
                raise http.client.IncompleteRead(b"", self._response.length)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise _unreachable(error) from None
        if chunk:
            return chunk
        self._is_done = True
        self._response.close()
        self._pool.release(self._connection, self._response.will_close)
        raise StopIteration

    def close(self) -> None:
        """Give the response up, if it is not read to the end."""
        if not self._is_done:
            self._is_done = True
            self._response.close()
            self._connection.close()

    def __enter__(self) -> EndpointResponse:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class EndpointConnections:
    """A pool of idle connections. Thread-safe."""

    def __init__(self, timeout: float = TIMEOUT) -> None:
        self.timeout = timeout
        self._idle: list[EndpointConnection] = []  # the most recently used last
        self._lock = threading.Lock()

    def request(
        self, address: str, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> EndpointResponse:
        """Send a request to the process at `address`; EndpointUnreachableError when there is no response.

        A request is sent again, once, on a new connection, only when a kept one broke before all of it was sent: the
        process cannot have begun an incomplete request.
        """
        connection = self._acquire(address)
        is_new = connection.sock is None
        try:
            try:
                connection.request(method, path, body, dict(headers or {}))
            except (BrokenPipeError, ConnectionResetError):
                if is_new:
                    raise
                connection.close()
                connection = EndpointConnection(address, self.timeout)
                connection.request(method, path, body, dict(headers or {}))
            return EndpointResponse(self, connection, connection.getresponse())
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise _unreachable(error) from None
        except BaseException:
            connection.close()
            raise

    def _acquire(self, address: str) -> EndpointConnection:
        with self._lock:
            stale = [connection for connection in self._idle if connection.is_stale]
            self._idle = [connection for connection in self._idle if connection not in stale]
            match = next((item for item in reversed(self._idle) if item.address == address), None)
            if match is not None:
                self._idle.remove(match)
        for connection in stale:
            connection.close()
        return match or EndpointConnection(address, self.timeout)

    def release(self, connection: EndpointConnection, will_close: bool) -> None:
        """Keep a connection whose response was read to the end, unless the process closes it."""
        if will_close:
            connection.close()
            return
        connection.idle_since = time.monotonic()
        with self._lock:
            self._idle.append(connection)
            surplus, self._idle = self._idle[:-MAX_IDLE], self._idle[-MAX_IDLE:]
        for old in surplus:
            old.close()


def _unreachable(error: Exception) -> EndpointUnreachableError:
    if isinstance(error, TimeoutError):
        return EndpointUnreachableError("it did not answer in time", timed_out=True)
    return EndpointUnreachableError(f"it cannot be reached ({type(error).__name__})")
