"""The listening sockets, and uvicorn on one of them: headers bounded in size and time, and a graceful shutdown."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from luthier.errors import UserError

BACKLOG = 512
HEAD_BYTES = 64 * 1024  # of a request's line and headers; botocore's largest are a few KiB
HEAD_SECONDS = 60.0  # to receive them
KEEP_ALIVE = 75  # seconds; clients keep connections for a minute; a request that meets a closing one is retried
GRACE = 30  # seconds that requests have to finish at shutdown
_FAULTS = {
    errno.EADDRINUSE: "in use; stop what listens there, or choose another {option}",
    errno.EACCES: "not allowed for this user; choose a {option} of 1024 or more",
    errno.EADDRNOTAVAIL: "not an address of this machine; choose another --host",
}


def listen(host: str, port: int, option: str = "--port") -> socket.socket:
    """Return a listening socket; UserError, naming the `option` to change, when the address cannot be used."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise UserError(f"--host {host}: {error.strerror or error}; expected an address of this machine") from None
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        why = _FAULTS.get(error.errno or 0, error.strerror or str(error)).format(option=option)
        raise UserError(f"port {port} of {host}: {why}") from None
    return listener


class BoundedHttp(HttpToolsProtocol):
    """uvicorn's protocol, which by itself accepts headers of any size and duration."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._head, self._in_head, self._events = 0, True, 0
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._timer = self.loop.call_later(HEAD_SECONDS, transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        before = self._events
        super().data_received(data)
        if self._events != before or not self._in_head or self.transport.is_closing():
            return
        self._head += len(data)
        if self._head > HEAD_BYTES:
            self.send_400_response(f"The request's head is over {HEAD_BYTES} bytes.")
        elif self._timer is None:
            self._timer = self.loop.call_later(HEAD_SECONDS, self.transport.abort)

    def on_headers_complete(self) -> None:
        self._head, self._in_head, self._events = 0, False, self._events + 1
        self._stop_timer()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._in_head, self._events = True, self._events + 1

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class _Uvicorn(uvicorn.Server):
    """Leaves signals to `serve`: uvicorn's own handling would end the process before its cleanup."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def serve(application: Callable[..., Any], listener: socket.socket, begin: Callable[[], None]) -> None:
    """Serve until SIGTERM or SIGINT; requests in flight then have GRACE seconds. A second Ctrl-C ends them.

    `begin` is called once the signal handlers are installed.
    """
    config = uvicorn.Config(
        application, http=BoundedHttp, ws="none", loop="asyncio", lifespan="off", log_config=None, access_log=False,
        server_header=False, proxy_headers=False, timeout_keep_alive=KEEP_ALIVE, timeout_graceful_shutdown=GRACE,
    )  # fmt: skip
    server = _Uvicorn(config)
    # A thread that serves a request cannot be cancelled, but must not block the shutdown forever.
    exit_timer = threading.Timer(GRACE + 10, os._exit, (1,))
    exit_timer.daemon = True

    def end(number: int, frame: FrameType | None) -> None:
        if not server.should_exit:
            exit_timer.start()
        server.handle_exit(number, frame)

    previous = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        begin()
        server.run([listener])
    finally:
        exit_timer.cancel()
        for number, handler in previous.items():
            signal.signal(number, handler)
