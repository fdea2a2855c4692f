"""Invocations: handed to what serves the endpoint, answered as it answers, and AWS's errors for the rest."""

from __future__ import annotations

import json
import socketserver
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from api.wire_client import ACCOUNT, OWNER, WireClient
from botocore.exceptions import ClientError, EventStreamError

from luthier.api import runtime
from luthier.jobs.progress import EndpointProgress, ServedVariant

Handler = Callable[["Served"], None]


class Served(BaseHTTPRequestHandler):
    """A stand-in for an endpoint's process; `work` is what it does with a request."""

    protocol_version = "HTTP/1.1"
    work: Handler

    def do_POST(self) -> None:
        self.data = self.rfile.read(int(self.headers["content-length"]))
        type(self).work(self)

    def address_string(self) -> str:
        return "unix"

    def log_message(self, format: str, *args: Any) -> None: ...

    def reply(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in ({"Content-Type": "application/json"} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def begin_stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None: ...


class _TcpServer(socketserver.ThreadingTCPServer):
    daemon_threads = True  # a kept-alive connection must not keep the server from closing


@pytest.fixture
def serve() -> Iterator[Callable[[Handler], str]]:
    """Start a stand-in; the function gives its address."""
    servers: list[_Server] = []
    with tempfile.TemporaryDirectory() as folder:

        def start(work: Handler) -> str:
            path = str(Path(folder) / f"{len(servers)}.sock")
            server = _Server(path, type("Working", (Served,), {"work": staticmethod(work)}))
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
            servers.append(server)
            return path

        yield start
        for server in servers:
            server.shutdown()
            server.server_close()


def endpoint(wire: WireClient, *variants: ServedVariant, status: str = "InService", address: str = "") -> None:
    """An endpoint `e` of `variants`, or of one that is served at `address`."""
    served = variants or (ServedVariant(name="AllTraffic", address=address),)
    found = wire.store.create("endpoint", OWNER, "e", {}, progress=EndpointProgress(variants=served))
    if status != "Creating":
        wire.store.update(found.id, status)


def echo(served: Served) -> None:
    told = {"path": served.path, "body": served.data.decode(), "headers": dict(served.headers)}
    served.reply(200, json.dumps(told).encode(), X_Amzn_SageMaker_Custom_Attributes="a=b")


def test_a_request_is_handed_on_and_its_answer_back(wire: WireClient, serve: Callable[[Handler], str]) -> None:
    endpoint(wire, address=serve(echo))
    answer = wire.client("sagemaker-runtime").invoke_endpoint(
        EndpointName="e", Body=b'{"inputs": "x"}', ContentType="application/json", Accept="application/json",
        CustomAttributes="accept_eula=true",
    )  # fmt: skip
    told = json.loads(answer["Body"].read())
    assert (told["path"], told["body"]) == ("/invocations", '{"inputs": "x"}')
    headers = {name.lower(): value for name, value in told["headers"].items()}
    assert headers["content-type"] == headers["accept"] == "application/json"
    assert headers["x-amzn-sagemaker-custom-attributes"] == "accept_eula=true"
    assert (answer["ContentType"], answer["InvokedProductionVariant"]) == ("application/json", "AllTraffic")
    assert answer["CustomAttributes"] == "a=b"


def test_a_port_of_the_loopback_address_serves_too(wire: WireClient) -> None:
    handler = type("Echo", (Served,), {"work": staticmethod(echo)})
    with _TcpServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        endpoint(wire, address="127.0.0.1:{1}".format(*server.server_address))
        answer = wire.client("sagemaker-runtime").invoke_endpoint(EndpointName="e", Body=b"x")
        assert json.loads(answer["Body"].read())["body"] == "x"
        server.shutdown()


def test_variants_are_asked_by_their_weights(wire: WireClient, serve: Callable[[Handler], str]) -> None:
    address = serve(echo)
    endpoint(wire, *(ServedVariant(name=name, weight=weight, address=address)
                     for name, weight in (("a", 3.0), ("b", 1.0), ("never", 0.0))))  # fmt: skip
    client = wire.client("sagemaker-runtime")

    def asked(**target: str) -> str:
        answer = client.invoke_endpoint(EndpointName="e", Body=b"", **target)
        answer["Body"].read()
        return str(answer["InvokedProductionVariant"])

    counted = Counter(asked() for _ in range(200))
    assert counted.keys() == {"a", "b"}
    assert counted["a"] > counted["b"] > 15
    assert asked(TargetVariant="never") == "never"
    assert wire.refusal(client.invoke_endpoint, EndpointName="e", Body=b"", TargetVariant="c") == (
        "ValidationError", "Variant c not found in endpoint e.",
    )  # fmt: skip


def test_a_stream_s_parts_come_as_they_are_sent(wire: WireClient, serve: Callable[[Handler], str]) -> None:
    seen = [threading.Event(), threading.Event()]

    def stream(served: Served) -> None:
        served.begin_stream()
        for number in range(2):
            served.chunk(f"data: {number}\n\n".encode())
            assert seen[number].wait(10)
        served.chunk(b"")

    endpoint(wire, address=serve(stream))
    answer = wire.client("sagemaker-runtime").invoke_endpoint_with_response_stream(EndpointName="e", Body=b"{}")
    assert (answer["ContentType"], answer["InvokedProductionVariant"]) == ("text/event-stream", "AllTraffic")
    parts = []
    for number, event in enumerate(answer["Body"]):
        parts.append(event["PayloadPart"]["Bytes"])
        seen[number].set()
    assert parts == [b"data: 0\n\n", b"data: 1\n\n"]


def test_a_stream_that_breaks_off_says_so(wire: WireClient, serve: Callable[[Handler], str]) -> None:
    def stream(served: Served) -> None:
        served.begin_stream()
        served.chunk(b"one")
        served.wfile.write(b"5\r\nab")
        served.wfile.flush()
        served.close_connection = True

    endpoint(wire, address=serve(stream))
    answer = wire.client("sagemaker-runtime").invoke_endpoint_with_response_stream(EndpointName="e", Body=b"{}")
    events = iter(answer["Body"])
    assert next(events)["PayloadPart"]["Bytes"].startswith(b"one")
    with pytest.raises(EventStreamError, match=r"ModelStreamError.*broke off"):
        list(events)


@pytest.mark.parametrize("operation", ["invoke_endpoint", "invoke_endpoint_with_response_stream"])
@pytest.mark.parametrize(
    ("status", "body", "code", "message"),
    [
        (400, b'{"error": "inputs: missing", "error_type": "validation"}', "ModelError",
         'Received client error (400) from model with message "inputs: missing". See the log group '
         f"/aws/sagemaker/Endpoints/e in account {ACCOUNT} for more information."),
        (500, b"boom", "ModelError", 'Received server error (500) from model with message "boom".'),
        (503, b'{"error": "loading", "error_type": "loading"}', "ModelNotReadyException",
         "The model of endpoint e is still loading; retry later."),
        (503, b'{"error": "256 rows wait", "error_type": "overloaded"}', "ServiceUnavailable",
         "Endpoint e: 256 rows wait"),
    ],
)  # fmt: skip
def test_an_answer_that_is_none(
    wire: WireClient, serve: Callable[[Handler], str], operation: str, status: int, body: bytes, code: str, message: str
) -> None:
    endpoint(wire, address=serve(lambda served: served.reply(status, body)))
    with pytest.raises(ClientError) as refused:
        getattr(wire.client("sagemaker-runtime"), operation)(EndpointName="e", Body=b"{}")
    told = refused.value.response
    assert told["Error"]["Code"] == code
    assert told["Error"]["Message"].startswith(message)
    expected = {"ModelError": 424, "ModelNotReadyException": 429, "ServiceUnavailable": 503}
    assert told["ResponseMetadata"]["HTTPStatusCode"] == expected[code]
    if code == "ModelError":
        assert told["OriginalStatusCode"] == status
        assert told["OriginalMessage"] in ("inputs: missing", "boom")
        assert told["LogStreamArn"] == f"arn:aws:logs:us-east-1:{ACCOUNT}:log-group:/aws/sagemaker/Endpoints/e"


def test_a_model_that_takes_too_long(
    wire: WireClient, serve: Callable[[Handler], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    done = threading.Event()
    monkeypatch.setattr(runtime._connections, "timeout", 0.05)

    def wait(served: Served) -> None:
        done.wait(10)

    endpoint(wire, address=serve(wait))
    code, message = wire.refusal(wire.client("sagemaker-runtime").invoke_endpoint, EndpointName="e", Body=b"{}")
    done.set()
    assert code == "ModelError"
    assert 'Received server error (504) from model with message "the model did not answer in time"' in message


def test_a_process_that_is_gone(wire: WireClient) -> None:
    endpoint(wire, address="/no/such.sock")
    code, message = wire.refusal(wire.client("sagemaker-runtime").invoke_endpoint, EndpointName="e", Body=b"{}")
    assert (code, message) == ("ServiceUnavailable", "Endpoint e: it cannot be reached (FileNotFoundError)")


def test_an_endpoint_that_is_not_served_yet(wire: WireClient) -> None:
    endpoint(wire)
    code, _ = wire.refusal(wire.client("sagemaker-runtime").invoke_endpoint, EndpointName="e", Body=b"{}")
    assert code == "ModelNotReadyException"


@pytest.mark.parametrize("status", ["Creating", "Failed", "Deleting"])
def test_an_endpoint_that_is_not_in_service(wire: WireClient, status: str) -> None:
    endpoint(wire, status=status)
    refused = wire.refusal(wire.client("sagemaker-runtime").invoke_endpoint, EndpointName="e", Body=b"{}")
    assert refused == (
        "ValidationError", f"Endpoint e of account {ACCOUNT} is in status {status}; it must be InService.",
    )  # fmt: skip


def test_what_cannot_be_asked(wire: WireClient) -> None:
    endpoint(wire)
    call = wire.client("sagemaker-runtime").invoke_endpoint
    assert wire.refusal(call, EndpointName="none", Body=b"") == (
        "ValidationError", f"Endpoint none of account {ACCOUNT} not found.",
    )  # fmt: skip
    for name, value in (("TargetModel", "m.tar.gz"), ("InferenceComponentName", "c"), ("SessionId", "NEW_SESSION")):
        code, message = wire.refusal(call, EndpointName="e", Body=b"", **{name: value})
        assert code == "ValidationError"
        assert message.startswith(f"{name} is not supported")
    code, _ = wire.refusal(call, EndpointName="e", Body=bytes(6_291_457))
    assert code in ("RequestEntityTooLargeException", "ValidationError")
