"""The HTTP door: GET /ping, POST /invocations, POST /invocations-response-stream.

It reads and writes HTTP, hands rows to the queue and waits for them; it knows no model. While the model is loaded it
says so.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Protocol

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from luthier.errors import LuthierError
from luthier.serving.answers import EVENT_STREAM, JSON_LINES, Stream, whole
from luthier.serving.batching import Batching
from luthier.serving.refusals import Refusal
from luthier.serving.requests import Asked, check_streamable, read_request
from luthier.serving.row import Answer, Row, Token

MOST_BODY = 6 * 1024 * 1024  # bytes, InvokeEndpoint's own limit
_DRAINED = 16 * MOST_BODY  # of a body that is too large this much is read and dropped, so that its sender hears why
_ACCEPTED = ("", "*/*", "application/*", "application/json")
_STREAMS = {"text/event-stream": EVENT_STREAM, "text/*": EVENT_STREAM, JSON_LINES: JSON_LINES,
            "application/x-jsonlines": JSON_LINES}  # fmt: skip
log = logging.getLogger(__name__)


class Answering(Protocol):
    """What the door needs of a loaded model; served.Served is it."""

    name: str
    broken: bool

    def rows(self, asked: Asked) -> list[Row]: ...

    def fit(self, rows: Sequence[Row]) -> bool: ...

    def run(self, rows: Sequence[Row]) -> None: ...


class Door:
    """The state behind the routes. `end` is called, with the reason, where the process had better end.

    `rows`, `waiting` and `window` are Batching's.
    """

    def __init__(
        self, *, rows: int = 16, waiting: int = 256, window: float = 0.005, end: Callable[[str], None] = log.error
    ) -> None:
        self._limits = (rows, waiting, window)
        self._end = end
        self._served: Answering | None = None
        self._batching: Batching | None = None
        routes = [
            Route("/ping", self._ping, methods=["GET"]),
            Route("/invocations", self._invocations, methods=["POST"]),
            Route("/invocations-response-stream", self._streamed, methods=["POST"]),
        ]
        self.app = Starlette(routes=routes, exception_handlers={HTTPException: _no_such_door, Exception: _fault})

    def open(self, served: Answering) -> None:
        """The model is loaded: answer from now on."""
        rows, waiting, window = self._limits
        self._batching = Batching(self._run, served.fit, rows=rows, waiting=waiting, window=window)
        self._served = served

    def close(self) -> None:
        """Answer what waits; nothing after it."""
        if self._batching:
            self._batching.close()

    def _run(self, rows: list[Row]) -> None:
        assert self._served is not None
        self._served.run(rows)
        if self._served.broken:
            self._end("the device computes no more")

    async def _ping(self, request: Request) -> Response:
        if self._served is None:
            return JSONResponse({"status": "loading"}, 503)
        state = "broken" if self._served.broken else "ready"
        return JSONResponse({"status": state, "model": self._served.name}, 500 if self._served.broken else 200)

    async def _invocations(self, request: Request) -> Response:
        return await self._answered(request, streams=False)

    async def _streamed(self, request: Request) -> Response:
        return await self._answered(request, streams=True)

    async def _answered(self, request: Request, streams: bool) -> Response:
        began = time.monotonic()
        try:
            response = await self._answer(request, streams)
        except ClientDisconnect:
            return Response(status_code=499)  # nobody is left to read it
        except Exception as error:
            response = _reply(error)
        log.info("%s %d %.3f s", request.url.path, response.status_code, time.monotonic() - began)
        return response

    async def _answer(self, request: Request, streams: bool) -> Response:
        body = await _body(request)
        served, batching = self._served, self._batching
        if served is None or batching is None:
            raise Refusal("the model is still being loaded; ask again when /ping answers 200", 503, "loading")
        media = _accepted(request.headers.get("accept", ""))
        asked = await run_in_threadpool(read_request, request.headers.get("content-type", ""), body)
        batching.admit(len(asked.prompts) * asked.parameters.num_return_sequences)
        if asked.stream if asked.stream is not None else streams:
            asked = check_streamable(asked)
            (row,) = await run_in_threadpool(served.rows, asked)
            return await _stream(row, batching, Stream(asked, served.name, media))
        rows = await run_in_threadpool(served.rows, asked)
        batching.submit(rows)
        answers = await _finished(rows, request)
        return JSONResponse(whole(asked, answers, served.name))


async def _body(request: Request) -> bytes:
    """The request's body; Refusal when it is larger than MOST_BODY."""
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size <= MOST_BODY:
            parts.append(part)
        elif size > _DRAINED:
            break
    if size > MOST_BODY:
        raise Refusal(f"the body: more than {MOST_BODY:,} bytes, the most that a request may have", 413)
    return b"".join(parts)


def _accepted(header: str) -> str:
    """How a stream is written, for an Accept header; whole answers are JSON whatever stream form is accepted."""
    names = [part.partition(";")[0].strip().lower() for part in header.split(",")]
    for name in names:
        if name in _STREAMS:
            return _STREAMS[name]
    if not any(name in _ACCEPTED for name in names):
        raise Refusal(f"Accept: {header}: answers are application/json; streams text/event-stream or {JSON_LINES}", 406)
    return EVENT_STREAM


async def _finished(rows: list[Row], request: Request) -> list[Answer]:
    """The rows' answers, in order. When one fails, or the client goes, the rest is called off."""
    found = asyncio.gather(*(asyncio.wrap_future(row.answers) for row in rows))
    gone = asyncio.ensure_future(_gone(request))
    try:
        both: set[asyncio.Future[Any]] = {found, gone}
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if not found.done():
            raise ClientDisconnect
        return [answer for answers in await found for answer in answers]
    finally:
        gone.cancel()
        found.cancel()
        for row in rows:
            row.cancelled = True


async def _gone(request: Request) -> None:
    """Return when the client has hung up."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _stream(row: Row, batching: Batching, stream: Stream) -> Response:
    """Answer with the row's tokens as they come. What fails before the first of them is answered as ever."""
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[tuple[Token, Answer | None] | Exception] = asyncio.Queue()

    def hear(token: Token, answer: Answer | None) -> None:
        loop.call_soon_threadsafe(queue.put_nowait, (token, answer))

    def ended(future: object) -> None:
        error = row.answers.exception()
        if isinstance(error, Exception):
            loop.call_soon_threadsafe(queue.put_nowait, error)

    row.hear = hear
    row.answers.add_done_callback(ended)
    batching.submit([row])
    try:
        first = await queue.get()
    except asyncio.CancelledError:
        row.cancelled = True
        raise
    if isinstance(first, Exception):
        raise first

    async def events() -> AsyncIterator[bytes]:
        event: tuple[Token, Answer | None] | Exception = first
        try:
            while not isinstance(event, Exception):
                yield stream.event(*event)
                if event[1] is not None:
                    return
                event = await queue.get()
            yield stream.error(_refusal(event).reply())
        finally:
            row.cancelled = True

    return StreamingResponse(events(), media_type=stream.media, headers={"Cache-Control": "no-cache"})


def _refusal(error: Exception) -> Refusal:
    """What a caller is told of an error."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, LuthierError):
        return Refusal(str(error), 500, "generation")
    return Refusal(f"{type(error).__name__} while answering; the endpoint's log says more", 500, "generation")


def _reply(error: Exception) -> Response:
    refusal = _refusal(error)
    if not isinstance(error, LuthierError):
        log.error("a request failed", exc_info=error)
    headers = {"Retry-After": "1"} if refusal.status == 503 else None
    return JSONResponse(refusal.reply(), refusal.status, headers)


async def _no_such_door(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    known = "GET /ping, POST /invocations and POST /invocations-response-stream"
    return JSONResponse(Refusal(f"{request.method} {request.url.path}: there is only {known}").reply(), status)


async def _fault(request: Request, error: Exception) -> Response:
    return _reply(error)
