"""HTTP: an ASGI application whose requests are answered in a bounded number of threads, bodies streamed both ways.

The only module that knows async. A thread that reads a body waits for the event loop to receive the next piece, and one
that sends waits until the piece is taken, so neither side holds more than a few pieces. A client that is gone, or too
slow, ends the thread's reading and sending by an error.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread

from luthier.protocol.errors import WireError
from luthier.protocol.gateway import Gateway
from luthier.protocol.message import Request, Response

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Scope = MutableMapping[str, Any]
Door = Callable[[Request], Response]

THREADS = 64
DOOR_THREADS = 4  # of their own: health is answered while every other thread is busy
IDLE_SECONDS = 60.0  # without a byte received or taken
LEAST_RATE = 1024  # bytes per second of waiting for them; a body that comes slower holds a thread for nothing
SHORT = 64 * 1024  # a body that is read before a thread is taken for it
DRAINED = 8 * 1024 * 1024  # of a body that the operation left unread; beyond it the connection is closed
DRAIN_SECONDS = 5.0
_logger = logging.getLogger(__name__)


def application(
    gateway: Gateway, doors: Mapping[str, Door], threads: int = THREADS, idle_seconds: float = IDLE_SECONDS
) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
    """The ASGI application; `doors` are paths that are answered beside the gateway, with "/" at the end for all below.

    `threads` is the most requests that are worked on at once; the others wait.
    """
    limiters: dict[bool, anyio.CapacityLimiter] = {}

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _live(receive, send)
            return
        if scope["type"] != "http":
            raise NotImplementedError(scope["type"])
        door = _door(doors, str(scope["path"]))
        # Made inside of the event loop that they belong to.
        limiter = limiters.setdefault(door is None, anyio.CapacityLimiter(threads if door is None else DOOR_THREADS))
        await _Exchange(scope, receive, send, idle_seconds).run(door or gateway.answer, limiter)

    return answer


def _door(doors: Mapping[str, Door], path: str) -> Door | None:
    below = [prefix for prefix in doors if prefix.endswith("/") and path.startswith(prefix)]
    return doors.get(path) or (doors[max(below, key=len)] if below else None)


async def _live(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


class ClientGone(WireError):
    """The client closed the connection, or no byte moved for too long; nobody reads this answer."""

    def __init__(self, message: str) -> None:
        super().__init__("RequestTimeout", message)


class _Exchange:
    """One request on its way between the event loop and a thread."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, idle_seconds: float) -> None:
        self.scope, self.receive, self.send, self.idle_seconds = scope, receive, send, idle_seconds
        self.headers = _headers(scope["headers"])
        self.early: list[bytes] = []
        self.whole = "transfer-encoding" not in self.headers and self._announced() == 0  # the request's body is in
        self.answering = self.stalled = self.gone = False
        self.received, self.waited = 0, 0.0
        self.drained, self.seen_whole = 0, anyio.Event()

    async def run(self, door: Door, limiter: anyio.CapacityLimiter) -> None:
        """Answer the request; returns when all of the answer is sent, or the client is gone."""
        try:
            await self._receive_short()
        except ClientGone as error:
            await self._refuse_slow(error)
            return
        async with anyio.create_task_group() as self.tasks:
            response = await anyio.to_thread.run_sync(self._work, door, limiter=limiter)
            if response is not None:
                await self._send_whole(response)
            self.tasks.cancel_scope.cancel()

    def _announced(self) -> int:
        text = self.headers.get("content-length", "0")
        return int(text) if text.isdecimal() else 0

    # In the thread

    def _work(self, door: Door) -> Response | None:
        """Answer in a thread: the answer when it is whole, None when it was sent from here, piece by piece."""
        scope = self.scope
        request = Request(
            method=str(scope["method"]),
            path=scope.get("raw_path", b"").decode("latin-1").partition("?")[0] or str(scope["path"]),
            query=scope["query_string"].decode("latin-1"),
            headers=self.headers,
            chunks=self._chunks(),
            peer=str((scope.get("client") or ("",))[0]),
        )
        try:
            response = door(request)
        except Exception:
            _logger.exception("%s %s failed", request.method, request.path)
            return Response(500, {"Content-Type": "text/plain"}, b"internal error\n")
        if isinstance(response.body, bytes):
            return response
        if request.method == "HEAD":
            _close(response.body)
            return Response(response.status, response.headers)
        self._stream(response, response.body)
        return None

    def _chunks(self) -> Iterator[bytes]:
        yield from self.early
        self.early = []
        while not self.whole:
            if piece := anyio.from_thread.run(self._next):
                yield piece

    def _stream(self, response: Response, body: Iterator[bytes]) -> None:
        """Send a body as it comes. One that fails is left unfinished and the connection closed: its reader sees it."""
        try:
            anyio.from_thread.run(self._begin, response, None)
            for piece in body:
                if piece:
                    anyio.from_thread.run(self._send_piece, piece, True)
            anyio.from_thread.run(self._send_piece, b"", False)
        except ClientGone as error:
            _logger.info("%s %s: %s", self.scope["method"], self.scope["path"], error)
        except Exception:
            _logger.exception("%s %s: the answer broke off", self.scope["method"], self.scope["path"])
        finally:
            _close(body)

    # In the event loop

    async def _receive_short(self) -> None:
        """Take in a body that is short, so that a slow sender holds no thread."""
        if self.whole or self._waits_to_send() or not 0 < self._announced() <= SHORT:
            return
        while not self.whole:
            self.early.append(await self._next())

    def _waits_to_send(self) -> bool:
        # The server asks such a client for its body when it is first received from: not before somebody wants it.
        return self.headers.get("expect", "").lower() == "100-continue"

    async def _next(self) -> bytes:
        """The next piece of the request's body."""
        if self.answering or self.stalled:
            raise ClientGone("Nothing more of the body is taken.")
        started = anyio.current_time()
        try:
            with anyio.fail_after(self.idle_seconds):
                message = await self.receive()
        except TimeoutError:
            self.stalled = True
            raise ClientGone(f"Nothing was received for {self.idle_seconds:g} seconds.") from None
        self.waited += anyio.current_time() - started
        self.received += len(message.get("body", b""))
        if self.waited > self.idle_seconds and self.received < self.waited * LEAST_RATE:
            self.stalled = True
            raise ClientGone(f"The body came at less than {LEAST_RATE:,} bytes per second.")
        if message["type"] != "http.request":
            self.gone = True
            raise ClientGone("The client closed the connection before its request was whole.")
        self.whole = not message.get("more_body", False)
        return bytes(message.get("body", b""))

    async def _watch(self) -> None:
        """Drop what the operation left unread, and learn when the client is gone."""
        while (message := await self.receive())["type"] == "http.request":
            self.drained += len(message.get("body", b""))
            if not message.get("more_body", False):
                self.whole = True
            if self.whole or self.drained > DRAINED:
                self.seen_whole.set()
        self.gone = True
        self.seen_whole.set()

    async def _settle(self) -> bool:
        """Whether the next request can come on this connection: whether the body of this one is in."""
        self.answering = True
        if self.whole:
            self.tasks.start_soon(self._watch)
        elif not self.stalled and not self._waits_to_send() and self._announced() <= DRAINED:
            self.tasks.start_soon(self._watch)
            with anyio.move_on_after(DRAIN_SECONDS):
                await self.seen_whole.wait()
        return self.whole

    async def _begin(self, response: Response, length: int | None) -> None:
        reusable = self.gone or await self._settle()
        given = {name.lower(): value for name, value in response.headers.items()}
        if length is not None:
            given["content-length"] = str(length)
        if not reusable:
            given["connection"] = "close"
        headers = [(name.encode("latin-1"), _header_bytes(value)) for name, value in given.items()]
        await self._deliver({"type": "http.response.start", "status": response.status, "headers": headers})

    async def _send_whole(self, response: Response) -> None:
        body = response.body if isinstance(response.body, bytes) else b""
        bodiless = response.status in (204, 304) or (self.scope["method"] == "HEAD" and not body)
        try:
            await self._begin(response, None if bodiless else len(body))
            await self._send_piece(b"" if self.scope["method"] == "HEAD" else body, False)
        except ClientGone as error:
            _logger.info("%s %s: %s", self.scope["method"], self.scope["path"], error)

    async def _send_piece(self, piece: bytes, more: bool) -> None:
        await self._deliver({"type": "http.response.body", "body": piece, "more_body": more})

    async def _deliver(self, message: Message) -> None:
        if self.gone:
            raise ClientGone("The client closed the connection before its answer was whole.")
        try:
            with anyio.fail_after(self.idle_seconds):
                await self.send(message)
        except TimeoutError:
            self.gone = True
            raise ClientGone(f"The client took nothing for {self.idle_seconds:g} seconds.") from None

    async def _refuse_slow(self, error: ClientGone) -> None:
        headers = [(b"connection", b"close"), (b"content-length", b"0")]
        _logger.info("%s %s: %s", self.scope["method"], self.scope["path"], error)
        await self.send({"type": "http.response.start", "status": 408, "headers": headers})
        await self.send({"type": "http.response.body", "body": b"", "more_body": False})


def _headers(pairs: list[tuple[bytes, bytes]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in pairs:
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        found[key] = f"{found[key]}, {text}" if key in found else text
    return found


def _header_bytes(value: str) -> bytes:
    # What came as bytes was read as Latin-1, and goes out as it came; other text can only be UTF-8.
    try:
        return value.encode("latin-1")
    except UnicodeEncodeError:
        return value.encode("utf-8")


def _close(body: Iterator[bytes]) -> None:
    close = getattr(body, "close", None)
    if close is not None:
        close()
