"""The wire on a real port, with an operation that records what it was called with and answers what a test tells it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import boto3
import uvicorn
from botocore.config import Config

from luthier.protocol import model
from luthier.protocol.asgi import application
from luthier.protocol.call import Call, Principal
from luthier.protocol.gateway import Gateway
from luthier.protocol.message import Request, Response
from luthier.protocol.signature import verify

KEY, SECRET = "AKLUTHIER0000000TEST", "a-secret/of+the=tests"
EVERYTHING = {service: frozenset(model.load(service).operation_names) for service in model.SERVICES}


class Echo:
    """Operations that answer `answers[name]`: a result, an error to raise, or what a function of the call makes."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.answers: dict[str, Any] = {}

    def __call__(self, call: Call) -> Any:
        self.calls.append(call)
        answer = self.answers.get(call.operation, {})
        if isinstance(answer, Exception):
            raise answer
        return answer(call) if callable(answer) else answer


def authenticate(request: Request, service: str) -> Principal:
    """Every request must be signed with KEY."""
    verify(request, lambda key: SECRET if key == KEY else None, datetime.now(UTC))
    return Principal()


class LiveWire:
    """A running server; `echo` is its operations."""

    def __init__(self, echo: Echo, port: int) -> None:
        self.echo, self.port = echo, port
        self._clients: list[Any] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, service: str, **options: Any) -> Any:
        """A real client of botocore's; one attempt per call, so that a test sees what the server said first."""
        settings = {"retries": {"total_max_attempts": 1}, "read_timeout": 20} | options.pop("config", {})
        given = {"aws_access_key_id": KEY, "aws_secret_access_key": SECRET, "region_name": "eu-west-1"} | options
        self._clients.append(boto3.client(service, endpoint_url=self.url, config=Config(**settings), **given))
        return self._clients[-1]

    def reset(self) -> None:
        """Close the clients, forget the calls and the answers."""
        while self._clients:
            self._clients.pop().close()
        self.echo.calls.clear()
        self.echo.answers.clear()


@contextmanager
def live_wire(
    handlers: Mapping[str, Callable[[Request], Response]] | None = None,
    operations: Any = EVERYTHING,
    authenticate: Callable[[Request, str], Principal] = authenticate,
    **options: Any,
) -> Iterator[LiveWire]:
    """Serve an Echo on a free port until the block ends."""
    echo = Echo()
    application_ = application(Gateway(echo, operations, authenticate), handlers or {}, **options)
    server = uvicorn.Server(uvicorn.Config(application_, port=0, log_level="critical", http="httptools", lifespan="on"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        deadline = time.monotonic() + 20
        while not server.started:
            assert time.monotonic() < deadline, "the server did not start"
            assert thread.is_alive(), "the server ended"
            time.sleep(0.01)
        live = LiveWire(echo, server.servers[0].sockets[0].getsockname()[1])
        yield live
        live.reset()
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive(), "the server did not end"
