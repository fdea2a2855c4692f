"""An endpoint for tests: the real HTTP server on a free port of this machine, round a model or something like one."""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import uvicorn

from luthier.serving.__main__ import _loopback
from luthier.serving.app import Answering, Door

JSON = "application/json"


@dataclass(frozen=True, slots=True)
class Reply:
    """What an endpoint said."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[dict[str, Any]]:
        """The events of a stream; its end marker left out."""
        lines = [line.removeprefix(b"data: ") for line in self.body.split(b"\n") if line]
        return [json.loads(line) for line in lines if line != b"[DONE]"]


class Endpoint:
    """A door that listens on `port`."""

    def __init__(self, door: Door, port: int) -> None:
        self.door = door
        self.port = port

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)

    def request(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Reply:
        connection = self.connect()
        try:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, named)
            response = connection.getresponse()
            return Reply(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()

    def post(self, body: Any, path: str = "/invocations", **headers: str) -> Reply:
        """A request with a JSON body, or with bytes as they are."""
        sent = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.request("POST", path, sent, **({"content_type": JSON} | headers))

    def answer(self, body: Any) -> Any:
        """The JSON of a request that must be answered."""
        reply = self.post(body)
        assert reply.status == 200, reply.body
        return reply.json

    def text(self, inputs: Any, **parameters: Any) -> str:
        """The generated text of one input."""
        return str(self.answer({"inputs": inputs, "parameters": parameters})[0]["generated_text"])

    def refusal(self, body: Any, **headers: str) -> tuple[int, str]:
        """Status and line of a request that must be refused."""
        reply = self.post(body, **headers)
        assert set(reply.json) == {"error", "error_type"}, reply.body
        assert "\n" not in reply.json["error"]
        return reply.status, reply.json["error"]

    def stream(self, body: Any, **headers: str) -> Reply:
        return self.post(body, "/invocations-response-stream", **headers)


@contextmanager
def listening(served: Answering | None, **limits: Any) -> Iterator[Endpoint]:
    """An endpoint of a model; None: of one that is still being loaded."""
    door = Door(**limits)
    if served is not None:
        door.open(served)
    socket = _loopback(0)
    config = uvicorn.Config(door.app, log_config=None, access_log=False, lifespan="off", ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[socket])))
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield Endpoint(door, socket.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join()
        socket.close()
        door.close()
