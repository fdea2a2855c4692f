"""Bodies that come slowly or never: who may not send one is refused by the head, and nobody's holds a thread."""

from __future__ import annotations

import http.client
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Any

import pytest
from botocore.auth import S3SigV4Auth, SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from live_wire import KEY, SECRET, LiveWire, live_wire

from luthier.protocol import asgi
from luthier.protocol.call import Principal

MIB = 1 << 20
THREADS = 64
TARGET = {"X-Amz-Target": "SageMaker.ListModels", "Content-Type": "application/x-amz-json-1.1"}


def signed(key: str = KEY, secret: str = SECRET, service: str = "sagemaker", **headers: str) -> dict[str, str]:
    """The head of a request that is signed, for a body of a MiB."""
    path, method = ("/", "POST") if service != "s3" else ("/b/k", "PUT")
    given = (TARGET if service != "s3" else {}) | {"Host": "localhost"} | headers
    request = AWSRequest(method, f"http://localhost{path}", data=b"x" * MIB, headers=given)
    signer = S3SigV4Auth if service == "s3" else SigV4Auth
    signer(Credentials(key, secret), service, "us-west-2").add_auth(request)
    return dict(request.headers.items())


def dated(days: int) -> dict[str, str]:
    moment = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(time.time() + days * 86400))
    head = signed()
    return head | {"X-Amz-Date": moment,
                   "Authorization": head["Authorization"].replace(head["X-Amz-Date"][:8], moment[:8])}  # fmt: skip


HEADS: dict[str, tuple[Callable[[], dict[str, str]], str]] = {
    "unsigned": (lambda: TARGET, "MissingAuthenticationTokenException"),
    "an unknown key": (lambda: signed("AKUNKNOWN00000000000"), "UnrecognizedClientException"),
    "a wrong date": (lambda: dated(-2), "InvalidSignatureException"),
    "a wrong secret, the hash in a header": (lambda: signed(secret="wrong", **{"X-Amz-Content-SHA256": "0" * 64}),
                                             "InvalidSignatureException"),
    "a wrong secret, in S3": (lambda: signed(secret="wrong", service="s3"), "SignatureDoesNotMatch"),
    "S3 by another service's signature": (lambda: signed() | {"X-Amz-Target": "s3.x"}, "AuthorizationHeaderMalformed"),
}  # fmt: skip


def begin(wire: LiveWire, headers: dict[str, str], length: int = MIB) -> socket.socket:
    """A request of which the head and one byte are sent."""
    path, method = ("/", "POST") if "X-Amz-Target" in headers else ("/b/k", "PUT")
    fields = {"Host": "localhost"} | headers | {"Content-Length": str(length)}
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
    connection = socket.create_connection(("127.0.0.1", wire.port), 10)
    connection.sendall("\r\n".join(lines).encode() + b"{")
    return connection


def answer(connection: socket.socket) -> tuple[int, str]:
    response = http.client.HTTPResponse(connection)
    response.begin()
    return response.status, response.read().decode()


@contextmanager
def many(wire: LiveWire, headers: dict[str, str], count: int, length: int = MIB) -> Iterator[list[socket.socket]]:
    with ExitStack() as stack:
        yield [stack.enter_context(closing(begin(wire, headers, length))) for _ in range(count)]


@pytest.fixture(scope="module")
def server() -> Iterator[LiveWire]:
    """Signatures are asked for, and as many threads work as in a real server."""
    with live_wire(threads=THREADS) as live:
        yield live


@pytest.fixture(scope="module")
def open_server() -> Iterator[LiveWire]:
    """Signatures are not asked for, and a second is the most that a body may take."""
    with live_wire(authenticate=lambda request, service: Principal(), threads=2, idle_seconds=1.0) as live:
        yield live


@pytest.mark.parametrize("what", HEADS)
def test_who_may_not_send_a_body_is_refused_by_the_head(
    wire: LiveWire, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asgi, "DRAIN_SECONDS", 0.2)
    head, code = HEADS[what]
    with many(wire, head(), 2) as slow:
        for connection in slow:
            status, body = answer(connection)
            assert 400 <= status <= 403
            assert code in body
    assert wire.echo.calls == []


@pytest.mark.parametrize("what", ["unsigned", "an unknown key", "a right key, wrongly used"])
@pytest.mark.parametrize("length", [100, MIB])
def test_slow_bodies_of_strangers_hold_no_thread(wire: LiveWire, what: str, length: int) -> None:
    head = HEADS[what][0]() if what in HEADS else signed(secret="wrong")
    with many(wire, head, THREADS + 16, length):
        started = time.monotonic()
        wire.client("sagemaker").list_models()
        wire.client("s3").put_object(Bucket="b", Key="k", Body=b"x" * 1000)
        assert time.monotonic() - started < 5
    assert [call.operation for call in wire.echo.calls] == ["ListModels", "PutObject"]


def test_a_signature_that_only_the_body_can_prove_is_checked(wire: LiveWire) -> None:
    with closing(begin(wire, signed())) as connection:
        connection.sendall(b"x" * (MIB - 1))  # signed was a body that begins with another byte
        status, body = answer(connection)
    assert (status, "InvalidSignatureException" in body) == (403, True)
    assert wire.echo.calls == []


@pytest.mark.parametrize("length", [100, MIB])
def test_a_body_that_never_comes_whole_is_ended_without_keys_too(open_server: LiveWire, length: int) -> None:
    wire = open_server
    wire.reset()
    with many(wire, TARGET, 8, length) as slow:
        assert wire.client("sagemaker").list_models()["ResponseMetadata"]["HTTPStatusCode"] == 200
        started = time.monotonic()
        for connection in slow:
            status, body = answer(connection)
            assert (status, "RequestTimeoutException" in body, "not read from" in body) == (408, True, True)
        assert time.monotonic() - started < 5
    assert len(wire.echo.calls) == 1


def test_a_body_that_keeps_dripping_is_ended(open_server: LiveWire) -> None:
    with closing(begin(open_server, TARGET)) as connection:
        connection.settimeout(0.05)
        deadline = time.monotonic() + 6
        said = b""
        while not said and time.monotonic() < deadline:
            connection.sendall(b"x" * 2000)  # 40 kB each second: not idle, and never there within one
            try:
                said = connection.recv(10_000)
            except TimeoutError:
                continue
    assert said.startswith(b"HTTP/1.1 408")


def test_a_body_that_announces_too_much_is_not_awaited(open_server: LiveWire, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asgi, "DRAIN_SECONDS", 0.2)
    with closing(begin(open_server, TARGET, 5 * MIB)) as connection:
        assert answer(connection)[0] == 413


def test_large_bodies_are_held_in_a_bounded_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asgi, "BUFFERED_BODIES", 1)
    everybody: Any = {"authenticate": lambda request, service: Principal()}
    with live_wire(**everybody, threads=2, idle_seconds=0.5) as made, many(made, TARGET, 2) as slow:
        started = time.monotonic()
        assert [answer(connection)[0] for connection in slow] == [408, 408]
        assert time.monotonic() - started > 0.9  # one after the other
