"""An endpoint for tests: the real HTTP server on a free local port, with a model or a substitute."""

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

from luthier.serving.__main__ import _listen_loopback
from luthier.serving.app import EndpointApp, ModelServer

JSON = "application/json"


@dataclass(frozen=True, slots=True)
class Response:
    """The response of an endpoint."""

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
    """An EndpointApp that listens on `port`."""

    def __init__(self, app: EndpointApp, port: int) -> None:
        self.app = app
        self.port = port

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)

    def request(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Response:
        connection = self.connect()
        try:
            all_headers = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, all_headers)
            response = connection.getresponse()
            return Response(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()

    def post(self, body: Any, path: str = "/invocations", **headers: str) -> Response:
        """Send a JSON body, or bytes unchanged."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.request("POST", path, data, **({"content_type": JSON} | headers))

    def answer(self, body: Any) -> Any:
        """Send a request that must succeed; returns the JSON."""
        reply = self.post(body)
        assert reply.status == 200, reply.body
        return reply.json

    def text(self, inputs: Any, **parameters: Any) -> str:
        """The generated text of one input."""
        return str(self.answer({"inputs": inputs, "parameters": parameters})[0]["generated_text"])

    def error(self, body: Any, **headers: str) -> tuple[int, str]:
        """Send a request that must fail; returns status and message."""
        reply = self.post(body, **headers)
        assert set(reply.json) == {"error", "error_type"}, reply.body
        assert "\n" not in reply.json["error"]
        return reply.status, reply.json["error"]

    def stream(self, body: Any, **headers: str) -> Response:
        return self.post(body, "/invocations-response-stream", **headers)


@contextmanager
def listening(model: ModelServer | None, **limits: Any) -> Iterator[Endpoint]:
    """An endpoint with the model, or without one, as while loading."""
    app = EndpointApp(**limits)
    if model is not None:
        app.set_model(model)
    socket = _listen_loopback(0)
    config = uvicorn.Config(app.app, log_config=None, access_log=False, lifespan="off", ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[socket])))
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield Endpoint(app, socket.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join()
        socket.close()
        app.close()
