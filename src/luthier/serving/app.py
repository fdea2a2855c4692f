"""The HTTP application: GET /ping, POST /invocations, POST /invocations-response-stream.

Parses requests, queues their rows and writes the responses. Responds 503 while the model is loading. Knows no model.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Any, Protocol

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from luthier.errors import LuthierError
from luthier.serving.batching import BatchQueue
from luthier.serving.errors import InvocationError
from luthier.serving.requests import InvocationRequest, as_stream, read_request
from luthier.serving.responses import EVENT_STREAM, JSON_LINES, EventEncoder, response_body
from luthier.serving.row import BatchRow, Completion, Token

MAX_BODY_BYTES = 6 * 1024 * 1024  # InvokeEndpoint's own limit
_MAX_DRAIN_BYTES = 16 * MAX_BODY_BYTES  # of a larger body this much is read, so that its sender gets the response
_JSON_ACCEPTS = ("", "*/*", "application/*", "application/json")
_STREAM_ACCEPTS = {"text/event-stream": EVENT_STREAM, "text/*": EVENT_STREAM, JSON_LINES: JSON_LINES,
                   "application/x-jsonlines": JSON_LINES}  # fmt: skip
log = logging.getLogger(__name__)


class ModelServer(Protocol):
    """The interface of a loaded model; implemented by model.ServedModel."""

    name: str
    is_broken: bool

    def prepare_rows(self, request: InvocationRequest) -> list[BatchRow]: ...

    def can_batch(self, rows: Sequence[BatchRow]) -> bool: ...

    def generate(self, rows: Sequence[BatchRow]) -> None: ...


class EndpointApp:
    """The routes and their state. `on_broken` is called with the reason if the process should end.

    `max_rows`, `max_waiting` and `max_delay` configure the BatchQueue.
    """

    def __init__(
        self, *, max_rows: int = 16, max_waiting: int = 256, max_delay: float = 0.005,
        on_broken: Callable[[str], None] = log.error,
    ) -> None:  # fmt: skip
        self._new_queue = partial(
            BatchQueue, self._generate, max_rows=max_rows, max_waiting=max_waiting, max_delay=max_delay
        )
        self._on_broken = on_broken
        self._model: ModelServer | None = None
        self._queue: BatchQueue | None = None
        routes = [
            Route("/ping", self._ping, methods=["GET"]),
            Route("/invocations", self._invocations, methods=["POST"]),
            Route("/invocations-response-stream", self._invocations_stream, methods=["POST"]),
        ]
        self.app = Starlette(routes=routes, exception_handlers={HTTPException: _not_found, Exception: _internal_error})

    def set_model(self, model: ModelServer) -> None:
        """Start to serve the loaded model."""
        self._queue = self._new_queue(model.can_batch)
        self._model = model

    def close(self) -> None:
        """Finish the queued rows and accept no more."""
        if self._queue:
            self._queue.close()

    def _generate(self, rows: list[BatchRow]) -> None:
        assert self._model is not None
        self._model.generate(rows)
        if self._model.is_broken:
            self._on_broken("the device no longer works")

    async def _ping(self, http: Request) -> Response:
        if self._model is None:
            return JSONResponse({"status": "loading"}, 503)
        state = "broken" if self._model.is_broken else "ready"
        return JSONResponse({"status": state, "model": self._model.name}, 500 if self._model.is_broken else 200)

    async def _invocations(self, http: Request) -> Response:
        return await self._respond(http, streams=False)

    async def _invocations_stream(self, http: Request) -> Response:
        return await self._respond(http, streams=True)

    async def _respond(self, http: Request, streams: bool) -> Response:
        start = time.monotonic()
        try:
            response = await self._invoke(http, streams)
        except ClientDisconnect:
            return Response(status_code=499)  # nobody reads it
        except Exception as error:
            response = _error_response(error)
        log.info("%s %d %.3f s", http.url.path, response.status_code, time.monotonic() - start)
        return response

    async def _invoke(self, http: Request, streams: bool) -> Response:
        body = await _read_body(http)
        model, queue = self._model, self._queue
        if model is None or queue is None:
            raise InvocationError("the model is still loading; retry when /ping returns 200", 503, "loading")
        media_type = _stream_media_type(http.headers.get("accept", ""))
        request = await run_in_threadpool(read_request, http.headers.get("content-type", ""), body)
        queue.check_size(len(request.prompts) * request.parameters.num_return_sequences)
        if request.stream if request.stream is not None else streams:
            request = as_stream(request)
            (row,) = await run_in_threadpool(model.prepare_rows, request)
            return await _stream(row, queue, EventEncoder(request, model.name, media_type))
        rows = await run_in_threadpool(model.prepare_rows, request)
        queue.submit(rows)
        completions = await _wait_for(rows, http)
        return JSONResponse(response_body(request, completions, model.name))


async def _read_body(http: Request) -> bytes:
    """Read the request's body; InvocationError if it is larger than MAX_BODY_BYTES."""
    parts: list[bytes] = []
    size = 0
    async for part in http.stream():
        size += len(part)
        if size <= MAX_BODY_BYTES:
            parts.append(part)
        elif size > _MAX_DRAIN_BYTES:
            break
    if size > MAX_BODY_BYTES:
        raise InvocationError(f"the body: larger than the limit of {MAX_BODY_BYTES:,} bytes", 413)
    return b"".join(parts)


def _stream_media_type(header: str) -> str:
    """Choose the media type of a stream by the Accept header. A response that is not a stream is always JSON."""
    names = [part.partition(";")[0].strip().lower() for part in header.split(",")]
    for name in names:
        if name in _STREAM_ACCEPTS:
            return _STREAM_ACCEPTS[name]
    if not any(name in _JSON_ACCEPTS for name in names):
        supported = f"application/json, or text/event-stream or {JSON_LINES} for streams"
        raise InvocationError(f"Accept: {header}: not supported; expected {supported}", 406)
    return EVENT_STREAM


async def _wait_for(rows: list[BatchRow], http: Request) -> list[Completion]:
    """Return the rows' completions, in order. If a row fails or the client disconnects, the others are cancelled."""
    results = asyncio.gather(*(asyncio.wrap_future(row.completions) for row in rows))
    disconnect = asyncio.ensure_future(_disconnected(http))
    try:
        futures: set[asyncio.Future[Any]] = {results, disconnect}
        await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
        if not results.done():
            raise ClientDisconnect
        return [completion for completions in await results for completion in completions]
    finally:
        disconnect.cancel()
        results.cancel()
        for row in rows:
            row.cancelled = True


async def _disconnected(http: Request) -> None:
    """Return when the client has disconnected."""
    while (await http.receive())["type"] != "http.disconnect":
        pass


async def _stream(row: BatchRow, batches: BatchQueue, encoder: EventEncoder) -> Response:
    """Stream the row's tokens. An error before the first token becomes an ordinary error response."""
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[tuple[Token, Completion | None] | Exception] = asyncio.Queue()

    def on_token(token: Token, completion: Completion | None) -> None:
        loop.call_soon_threadsafe(queue.put_nowait, (token, completion))

    def on_done(future: object) -> None:
        error = row.completions.exception()
        if isinstance(error, Exception):
            loop.call_soon_threadsafe(queue.put_nowait, error)

    row.on_token = on_token
    row.completions.add_done_callback(on_done)
    batches.submit([row])
    try:
        first = await queue.get()
    except asyncio.CancelledError:
        row.cancelled = True
        raise
    if isinstance(first, Exception):
        raise first

    async def events() -> AsyncIterator[bytes]:
        event: tuple[Token, Completion | None] | Exception = first
        try:
            while not isinstance(event, Exception):
                yield encoder.event(*event)
                if event[1] is not None:
                    return
                event = await queue.get()
            yield encoder.error(_as_invocation_error(event).body())
        finally:
            row.cancelled = True

    return StreamingResponse(events(), media_type=encoder.media_type, headers={"Cache-Control": "no-cache"})


def _as_invocation_error(error: Exception) -> InvocationError:
    if isinstance(error, InvocationError):
        return error
    if isinstance(error, LuthierError):
        return InvocationError(str(error), 500, "generation")
    return InvocationError(f"{type(error).__name__} during generation; see the endpoint's log", 500, "generation")


def _error_response(error: Exception) -> Response:
    invocation_error = _as_invocation_error(error)
    if not isinstance(error, LuthierError):
        log.error("a request failed", exc_info=error)
    headers = {"Retry-After": "1"} if invocation_error.status == 503 else None
    return JSONResponse(invocation_error.body(), invocation_error.status, headers)


async def _not_found(http: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    known = "GET /ping, POST /invocations and POST /invocations-response-stream"
    message = f"{http.method} {http.url.path}: not found; this endpoint serves {known}"
    return JSONResponse(InvocationError(message).body(), status)


async def _internal_error(http: Request, error: Exception) -> Response:
    return _error_response(error)
