"""HTTP: an ASGI application whose requests are answered in a bounded number of threads, bodies streamed both ways.

The only module that knows async. A request is judged by its head before its body is received. A body that is read
whole, or is short, is received in the event loop, within a bounded time, and holds no thread; of S3's long ones, a
thread that reads waits for the event loop to receive the next piece, and one that sends waits until the piece is taken,
so neither side holds more than a few pieces. A client that is gone, or too slow, ends reading and sending by an error.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping
from contextlib import nullcontext
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread

from luthier.protocol.errors import WireError
from luthier.protocol.gateway import Exchange, Gateway
from luthier.protocol.message import Request, Response

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Scope = MutableMapping[str, Any]
Door = Callable[[Request], Response]

THREADS = 64
DOOR_THREADS = 4  # of their own: health is answered while every other thread is busy
HELD = 64  # bodies above SHORT that are held whole, or are on their way to be, at once; the others wait, unreceived
IDLE_SECONDS = 60.0  # without a byte received or taken; and for all of a body that is read whole
LEAST_RATE = 1024  # bytes per second of waiting for them; a body that comes slower holds a thread for nothing
SHORT = 64 * 1024  # a body that is always received before a thread is taken for it
DRAINED = 8 * 1024 * 1024  # of a body that the operation left unread; beyond it the connection is closed
DRAIN_SECONDS = 5.0
_LATE = (
    "Your socket connection to the server was not read from or written to within the timeout period. Idle connections "
    "will be closed."
)  # S3's words, which its clients know
_logger = logging.getLogger(__name__)


def application(
    gateway: Gateway, doors: Mapping[str, Door], threads: int = THREADS, idle_seconds: float = IDLE_SECONDS
) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
    """The ASGI application; `doors` are paths that are answered beside the gateway, with "/" at the end for all below.

    `threads` is the most requests that are worked on at once; the others wait.
    """
    rooms: list[_Rooms] = []

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _live(receive, send)
            return
        if scope["type"] != "http":
            raise NotImplementedError(scope["type"])
        if not rooms:  # made inside of the event loop that they belong to
            rooms.append(_Rooms(threads))
        door = _door(doors, str(scope["path"]))
        exchange = _Exchange(scope, receive, send, idle_seconds)
        await (exchange.answer_by_door(door, rooms[0]) if door else exchange.answer(gateway, rooms[0]))

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


class _Rooms:
    """How many requests may be at what."""

    def __init__(self, threads: int) -> None:
        self.work = anyio.CapacityLimiter(threads)
        self.doors = anyio.CapacityLimiter(DOOR_THREADS)
        self.held = anyio.CapacityLimiter(HELD)


class _Exchange:
    """One request on its way between the event loop and a thread."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, idle_seconds: float) -> None:
        self.scope, self.receive, self.send, self.idle_seconds = scope, receive, send, idle_seconds
        self.request = Request(
            method=str(scope["method"]),
            path=scope.get("raw_path", b"").decode("latin-1").partition("?")[0] or str(scope["path"]),
            query=scope["query_string"].decode("latin-1"),
            headers=_headers(scope["headers"]),
            chunks=self._chunks(),
            peer=str((scope.get("client") or ("",))[0]),
        )
        self.headers = self.request.headers  # as they were sent; the gateway replaces the request's
        self.announced = self.request.announced
        self.early: list[bytes] = []
        self.whole = "transfer-encoding" not in self.headers and self.announced == 0  # the request's body is in
        self.answering = self.stalled = self.gone = False
        self.received, self.waited = 0, 0.0
        self.drained, self.seen_whole = 0, anyio.Event()

    async def answer(self, gateway: Gateway, rooms: _Rooms) -> None:
        """Answer the request; returns when all of the answer is sent, or the client is gone."""
        async with anyio.create_task_group() as self.tasks:
            if self.whole:
                await self._answer(lambda: gateway.answer(self.request), rooms.work)
            else:
                begun = await anyio.to_thread.run_sync(gateway.begin, self.request, limiter=rooms.work)
                ahead = self._ahead(begun)
                async with rooms.held if ahead > SHORT and not self._short else nullcontext():
                    await self._receive(ahead)
                    await self._answer(lambda: gateway.end(begun), rooms.work)
            self.tasks.cancel_scope.cancel()

    async def answer_by_door(self, door: Door, rooms: _Rooms) -> None:
        """The same, by a door; its body stays unread unless the door reads it."""
        async with anyio.create_task_group() as self.tasks:
            await self._answer(lambda: door(self.request), rooms.doors)
            self.tasks.cancel_scope.cancel()

    async def _answer(self, work: Callable[[], Response], limiter: anyio.CapacityLimiter) -> None:
        response = await anyio.to_thread.run_sync(self._work, work, limiter=limiter)
        if response is not None:
            await self._send_whole(response)

    # In the thread

    def _work(self, work: Callable[[], Response]) -> Response | None:
        """Answer in a thread: the answer when it is whole, None when it was sent from here, piece by piece."""
        request = self.request
        try:
            response = work()
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

    @property
    def _short(self) -> bool:
        return 0 < self.announced <= SHORT

    def _ahead(self, begun: Exchange) -> int:
        """The most bytes of the body that are received before a thread is taken; 0 where none are."""
        if begun.failure is not None:
            return 0
        if begun.limit is not None:
            return begun.limit
        return SHORT if self._short and not self._waits_to_send() else 0

    async def _receive(self, ahead: int) -> None:
        """Take in a body of `ahead` bytes at most; one that is too slow ends in an error when it is read."""
        try:
            with anyio.fail_after(self.idle_seconds):
                while not self.whole and self.received <= ahead and ahead:
                    self.early.append(await self._next())
        except TimeoutError:
            self.stalled = True
        except ClientGone as error:
            _logger.info("%s %s: %s", self.scope["method"], self.scope["path"], error)

    def _waits_to_send(self) -> bool:
        # The server asks such a client for its body when it is first received from: not before somebody wants it.
        return self.headers.get("expect", "").lower() == "100-continue"

    async def _next(self) -> bytes:
        """The next piece of the request's body."""
        if self.stalled:
            raise ClientGone(_LATE)
        if self.answering or self.gone:
            raise ClientGone("Nothing more of the body is taken.")
        started = anyio.current_time()
        try:
            with anyio.fail_after(self.idle_seconds):
                message = await self.receive()
        except TimeoutError:
            self.stalled = True
            raise ClientGone(_LATE) from None
        self.waited += anyio.current_time() - started
        self.received += len(message.get("body", b""))
        if self.waited > self.idle_seconds and self.received < self.waited * LEAST_RATE:
            self.stalled = True
            raise ClientGone(_LATE)
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
        elif not self.stalled and not self._waits_to_send() and self.announced <= DRAINED:
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
