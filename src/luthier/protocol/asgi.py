"""HTTP: an ASGI application that handles requests in a bounded number of threads and streams bodies both ways.

The only asynchronous module. A request is authenticated by its head before its body is received. A body that is
short, or that is read before any work, is received in the event loop within a bounded time and occupies no thread. For
S3's long bodies a thread waits for the event loop to receive or send each chunk, so only a few chunks are in memory.
A client that disconnects or is too slow ends reading and sending with an error.
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
from luthier.protocol.gateway import Gateway, RequestContext
from luthier.protocol.message import Request, Response

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Scope = MutableMapping[str, Any]
Handler = Callable[[Request], Response]

THREADS = 64
HANDLER_THREADS = 4  # reserved: health checks respond while every other thread is busy
BUFFERED_BODIES = 64  # bodies over SHORT_BODY bytes in memory at once; further ones wait, unreceived
IDLE_SECONDS = 60.0  # without a byte received or sent; also for all of a body that is buffered
MIN_BYTES_PER_SECOND = 1024  # of a body, while waiting for it; slower clients would block threads
SHORT_BODY = 64 * 1024  # bytes; such a body is received before it gets a thread
MAX_DRAINED_BYTES = 8 * 1024 * 1024  # of a body that the operation did not read; beyond, the connection is closed
DRAIN_SECONDS = 5.0
_TIMEOUT_MESSAGE = (
    "Your socket connection to the server was not read from or written to within the timeout period. Idle connections "
    "will be closed."
)  # S3's message, which its clients know
_logger = logging.getLogger(__name__)


def application(
    gateway: Gateway, handlers: Mapping[str, Handler], threads: int = THREADS, idle_seconds: float = IDLE_SECONDS
) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
    """The ASGI application.

    `handlers` serve paths of their own, instead of the gateway; a path that ends in "/" serves all paths below it.
    `threads` is the maximum number of requests handled at once; further ones wait.
    """
    limiters: list[_Limiters] = []

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _run_lifespan(receive, send)
            return
        if scope["type"] != "http":
            raise NotImplementedError(scope["type"])
        if not limiters:  # they must be created inside their event loop
            limiters.append(_Limiters(threads))
        handler = _find_handler(handlers, str(scope["path"]))
        cycle = _RequestCycle(scope, receive, send, idle_seconds)
        await (cycle.respond_by_handler(handler, limiters[0]) if handler else cycle.respond(gateway, limiters[0]))

    return serve


def _find_handler(handlers: Mapping[str, Handler], path: str) -> Handler | None:
    below = [prefix for prefix in handlers if prefix.endswith("/") and path.startswith(prefix)]
    return handlers.get(path) or (handlers[max(below, key=len)] if below else None)


async def _run_lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


class ClientGone(WireError):
    """The client closed the connection or was idle for too long; nobody reads the response."""

    def __init__(self, message: str) -> None:
        super().__init__("RequestTimeout", message)


class _Limiters:
    """How many requests may do what at once."""

    def __init__(self, threads: int) -> None:
        self.work = anyio.CapacityLimiter(threads)
        self.handlers = anyio.CapacityLimiter(HANDLER_THREADS)
        self.buffered = anyio.CapacityLimiter(BUFFERED_BODIES)


class _RequestCycle:
    """One request and its response, handled in the event loop and a thread."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, idle_seconds: float) -> None:
        self.scope, self.receive, self.send, self.idle_seconds = scope, receive, send, idle_seconds
        self.request = Request(
            method=str(scope["method"]),
            path=scope.get("raw_path", b"").decode("latin-1").partition("?")[0] or str(scope["path"]),
            query=scope["query_string"].decode("latin-1"),
            headers=_headers(scope["headers"]),
            chunks=self._body_chunks(),
            peer=str((scope.get("client") or ("",))[0]),
        )
        self.headers = self.request.headers  # as sent; the gateway replaces the request's
        self.content_length = self.request.content_length
        self.buffered_chunks: list[bytes] = []
        self.body_received = "transfer-encoding" not in self.headers and self.content_length == 0
        self.responding = self.stalled = self.gone = False
        self.received, self.waited = 0, 0.0
        self.drained, self.drained_event = 0, anyio.Event()

    async def respond(self, gateway: Gateway, limiters: _Limiters) -> None:
        """Handle the request; return when the response is sent or the client is gone."""
        async with anyio.create_task_group() as self.tasks:
            if self.body_received:
                await self._respond(lambda: gateway.respond(self.request), limiters.work)
            else:
                context = await anyio.to_thread.run_sync(gateway.begin, self.request, limiter=limiters.work)
                limit = self._buffer_limit(context)
                async with limiters.buffered if limit > SHORT_BODY and not self._is_short else nullcontext():
                    await self._receive(limit)
                    await self._respond(lambda: gateway.finish(context), limiters.work)
            self.tasks.cancel_scope.cancel()

    async def respond_by_handler(self, handler: Handler, limiters: _Limiters) -> None:
        """Handle the request by a handler of its own; the body stays unread unless the handler reads it."""
        async with anyio.create_task_group() as self.tasks:
            await self._respond(lambda: handler(self.request), limiters.handlers)
            self.tasks.cancel_scope.cancel()

    async def _respond(self, work: Callable[[], Response], limiter: anyio.CapacityLimiter) -> None:
        response = await anyio.to_thread.run_sync(self._run_in_thread, work, limiter=limiter)
        if response is not None:
            await self._send_response(response)

    # In the thread

    def _run_in_thread(self, work: Callable[[], Response]) -> Response | None:
        """Run `work` in this thread: its response, or None if the response was streamed from here."""
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
        self._stream_body(response, response.body)
        return None

    def _body_chunks(self) -> Iterator[bytes]:
        yield from self.buffered_chunks
        self.buffered_chunks = []
        while not self.body_received:
            if chunk := anyio.from_thread.run(self._next):
                yield chunk

    def _stream_body(self, response: Response, body: Iterator[bytes]) -> None:
        """Stream a body. If it fails, the connection is closed early, so that the client notices."""
        try:
            anyio.from_thread.run(self._send_head, response, None)
            for chunk in body:
                if chunk:
                    anyio.from_thread.run(self._send_chunk, chunk, True)
            anyio.from_thread.run(self._send_chunk, b"", False)
        except ClientGone as error:
            _logger.info("%s %s: %s", self.scope["method"], self.scope["path"], error)
        except Exception:
            _logger.exception("%s %s: the response broke off", self.scope["method"], self.scope["path"])
        finally:
            _close(body)

    # In the event loop

    @property
    def _is_short(self) -> bool:
        return 0 < self.content_length <= SHORT_BODY

    def _buffer_limit(self, context: RequestContext) -> int:
        """The maximum number of body bytes to receive before a thread is used; 0: none."""
        if context.failure is not None:
            return 0
        if context.body_limit is not None:
            return context.body_limit
        return SHORT_BODY if self._is_short and not self._expects_continue() else 0

    async def _receive(self, limit: int) -> None:
        """Buffer up to `limit` bytes of the body; a client that is too slow causes an error when the body is read."""
        try:
            with anyio.fail_after(self.idle_seconds):
                while not self.body_received and self.received <= limit and limit:
                    self.buffered_chunks.append(await self._next())
        except TimeoutError:
            self.stalled = True
        except ClientGone as error:
            _logger.info("%s %s: %s", self.scope["method"], self.scope["path"], error)

    def _expects_continue(self) -> bool:
        # The ASGI server sends 100 Continue at the first receive, so nothing may be received before the body is needed.
        return self.headers.get("expect", "").lower() == "100-continue"

    async def _next(self) -> bytes:
        """Receive the next chunk of the request's body."""
        if self.stalled:
            raise ClientGone(_TIMEOUT_MESSAGE)
        if self.responding or self.gone:
            raise ClientGone("The response has begun; the rest of the body is not read.")
        started = anyio.current_time()
        try:
            with anyio.fail_after(self.idle_seconds):
                message = await self.receive()
        except TimeoutError:
            self.stalled = True
            raise ClientGone(_TIMEOUT_MESSAGE) from None
        self.waited += anyio.current_time() - started
        self.received += len(message.get("body", b""))
        if self.waited > self.idle_seconds and self.received < self.waited * MIN_BYTES_PER_SECOND:
            self.stalled = True
            raise ClientGone(_TIMEOUT_MESSAGE)
        if message["type"] != "http.request":
            self.gone = True
            raise ClientGone("The client closed the connection before the request was complete.")
        self.body_received = not message.get("more_body", False)
        return bytes(message.get("body", b""))

    async def _drain(self) -> None:
        """Discard what the operation left unread of the body, and notice when the client disconnects."""
        while (message := await self.receive())["type"] == "http.request":
            self.drained += len(message.get("body", b""))
            if not message.get("more_body", False):
                self.body_received = True
            if self.body_received or self.drained > MAX_DRAINED_BYTES:
                self.drained_event.set()
        self.gone = True
        self.drained_event.set()

    async def _is_reusable(self) -> bool:
        """Whether the connection can be kept alive: whether the body is received, after draining it if it is short."""
        self.responding = True
        if self.body_received:
            self.tasks.start_soon(self._drain)
        elif not self.stalled and not self._expects_continue() and self.content_length <= MAX_DRAINED_BYTES:
            self.tasks.start_soon(self._drain)
            with anyio.move_on_after(DRAIN_SECONDS):
                await self.drained_event.wait()
        return self.body_received

    async def _send_head(self, response: Response, length: int | None) -> None:
        reusable = self.gone or await self._is_reusable()
        headers = {name.lower(): value for name, value in response.headers.items()}
        if length is not None:
            headers["content-length"] = str(length)
        if not reusable:
            headers["connection"] = "close"
        pairs = [(name.encode("latin-1"), _header_bytes(value)) for name, value in headers.items()]
        await self._send_message({"type": "http.response.start", "status": response.status, "headers": pairs})

    async def _send_response(self, response: Response) -> None:
        body = response.body if isinstance(response.body, bytes) else b""
        bodiless = response.status in (204, 304) or (self.scope["method"] == "HEAD" and not body)
        try:
            await self._send_head(response, None if bodiless else len(body))
            await self._send_chunk(b"" if self.scope["method"] == "HEAD" else body, False)
        except ClientGone as error:
            _logger.info("%s %s: %s", self.scope["method"], self.scope["path"], error)

    async def _send_chunk(self, chunk: bytes, more: bool) -> None:
        await self._send_message({"type": "http.response.body", "body": chunk, "more_body": more})

    async def _send_message(self, message: Message) -> None:
        if self.gone:
            raise ClientGone("The client closed the connection before the response was complete.")
        try:
            with anyio.fail_after(self.idle_seconds):
                await self.send(message)
        except TimeoutError:
            self.gone = True
            raise ClientGone(f"The client received nothing for {self.idle_seconds:g} seconds.") from None


def _headers(pairs: list[tuple[bytes, bytes]]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for name, value in pairs:
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        headers[key] = f"{headers[key]}, {text}" if key in headers else text
    return headers


def _header_bytes(value: str) -> bytes:
    # Headers are received as Latin-1 and sent back unchanged; text beyond Latin-1 is sent as UTF-8.
    try:
        return value.encode("latin-1")
    except UnicodeEncodeError:
        return value.encode("utf-8")


def _close(body: Iterator[bytes]) -> None:
    close = getattr(body, "close", None)
    if close is not None:
        close()
