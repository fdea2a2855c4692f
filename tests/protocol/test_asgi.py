"""HTTP as it is: streams in both directions with bounded memory, clients that are slow, gone, or wait to be asked."""

from __future__ import annotations

import http.client
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from botocore.exceptions import ClientError
from live_wire import LiveWire, live_wire

from luthier.protocol.asgi import ClientGone
from luthier.protocol.call import Call, Principal
from luthier.protocol.errors import WireError
from luthier.protocol.message import Request, Response

MIB = 1 << 20


def health(request: Request) -> Response:
    return Response(200, {"Content-Type": "text/plain"}, b"well")


def below(request: Request) -> Response:
    return Response(200, {}, f"{request.method} {request.path} {request.peer}".encode())


def broken(request: Request) -> Response:
    raise RuntimeError("secret")


HANDLERS = {"/_luthier/health": health, "/_luthier/": below, "/_luthier/broken": broken}


@pytest.fixture(scope="module")
def server() -> Iterator[LiveWire]:
    """No signatures are asked for here, two threads work, and nobody may be idle for long."""
    options: Any = {"threads": 2, "idle_seconds": 1.0}
    with live_wire(HANDLERS, authenticate=lambda request, service: Principal(), **options) as live:
        yield live


def connect(wire: LiveWire) -> socket.socket:
    made = socket.create_connection(("127.0.0.1", wire.port), 10)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made


def head(method: str, path: str, *lines: str) -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: localhost", *lines, "", ""]).encode()


def answer(connection: socket.socket) -> tuple[int, bytes]:
    response = http.client.HTTPResponse(connection)
    response.begin()
    return response.status, response.read()


def until(condition: Any, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_transfer_coding_other_than_chunked_is_refused(server: LiveWire) -> None:
    with closing(connect(server)) as connection:
        connection.sendall(head("PUT", "/bucket/key", "Transfer-Encoding: gzip, chunked") + b"1\r\nx\r\n0\r\n\r\n")
        status, body = answer(connection)
    assert status == 501
    assert b"gzip, chunked" in body
    assert not server.echo.calls


def test_a_body_of_an_operation_without_one_is_ignored(server: LiveWire) -> None:
    with closing(connect(server)) as connection:
        connection.sendall(head("GET", "/bucket/key", "Content-Length: 5") + b"hello")
        status, _ = answer(connection)
    assert status == 200
    assert server.echo.calls[-1].operation == "GetObject"


def test_doors(wire: LiveWire) -> None:
    with urllib.request.urlopen(f"{wire.url}/_luthier/health") as response:
        assert (response.status, response.read(), response.headers["content-type"]) == (200, b"well", "text/plain")
    with urllib.request.urlopen(f"{wire.url}/_luthier/other/x") as response:
        assert response.read() == b"GET /_luthier/other/x 127.0.0.1"
    assert wire.echo.calls == []


def test_a_door_that_breaks_tells_nothing(wire: LiveWire) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(f"{wire.url}/_luthier/broken")
    with caught.value as response:
        assert (response.status, response.read()) == (500, b"internal error\n")


def test_a_body_is_handed_on_while_it_comes(wire: LiveWire) -> None:
    seen = bytearray()

    def put(call: Call) -> Any:
        for piece in call.parameters["Body"]:
            assert len(piece) < MIB
            seen.extend(piece)
        return {"ETag": '"e"'}

    wire.echo.answers["PutObject"] = put
    with closing(connect(wire)) as connection:
        connection.sendall(head("PUT", "/b/k", f"Content-Length: {4 * MIB}"))
        for number in range(1, 5):
            connection.sendall(b"x" * MIB)
            until(lambda count=number: len(seen) == count * MIB)
        assert answer(connection)[0] == 200


def test_a_body_in_http_s_chunks(wire: LiveWire) -> None:
    wire.echo.answers["PutObject"] = lambda call: {"ETag": b"".join(call.parameters["Body"]).decode()}
    with closing(connect(wire)) as connection:
        connection.sendall(head("PUT", "/b/k", "Transfer-Encoding: chunked") + b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")
        response = http.client.HTTPResponse(connection)
        response.begin()
        assert response.headers["etag"] == "abcde"


def test_a_body_that_nobody_reads_is_not_taken(wire: LiveWire) -> None:
    """Back-pressure: what the operation does not read stays with the client."""
    started, finish = threading.Event(), threading.Event()

    def put(call: Call) -> Any:
        started.set()
        assert finish.wait(10)
        return {"ETag": str(sum(map(len, call.parameters["Body"])))}

    wire.echo.answers["PutObject"] = put
    with closing(connect(wire)) as connection:
        connection.sendall(head("PUT", "/b/k", f"Content-Length: {64 * MIB}"))
        assert started.wait(10)
        connection.settimeout(0.3)
        sent = 0
        while sent < 64 * MIB:
            try:
                sent += connection.send(b"x" * min(MIB, 64 * MIB - sent))
            except TimeoutError:
                break
        assert sent < 32 * MIB
        finish.set()
        connection.settimeout(10)
        while sent < 64 * MIB:
            sent += connection.send(b"x" * min(MIB, 64 * MIB - sent))
        assert answer(connection)[0] == 200


def test_an_answer_that_nobody_takes_is_not_made(wire: LiveWire) -> None:
    made = 0

    def pieces() -> Iterator[bytes]:
        nonlocal made
        for _ in range(64):
            made += 1
            yield b"x" * MIB

    wire.echo.answers["GetObject"] = lambda call: {"Body": pieces(), "ContentLength": 64 * MIB}
    with closing(connect(wire)) as connection:
        connection.sendall(head("GET", "/b/k"))
        time.sleep(0.5)
        assert made < 32
        status, body = answer(connection)
        assert (status, len(body), made) == (200, 64 * MIB, 64)


def test_a_client_that_takes_nothing_ends_the_stream(wire: LiveWire) -> None:
    closed = threading.Event()

    def endless() -> Iterator[bytes]:
        try:
            while True:
                yield b"x" * MIB
        finally:
            closed.set()

    wire.echo.answers["GetObject"] = lambda call: {"Body": endless()}
    with closing(connect(wire)) as connection:
        connection.sendall(head("GET", "/b/k"))
        assert closed.wait(10)


def test_a_client_that_is_gone_ends_the_stream(wire: LiveWire) -> None:
    closed = threading.Event()

    def slow() -> Iterator[bytes]:
        try:
            while True:
                time.sleep(0.02)
                yield b"x"
        finally:
            closed.set()

    wire.echo.answers["GetObject"] = lambda call: {"Body": slow()}
    with closing(connect(wire)) as connection:
        connection.sendall(head("GET", "/b/k"))
        connection.recv(1000)
    assert closed.wait(10)


@pytest.mark.parametrize("leaves", [True, False])
def test_a_client_that_does_not_send_its_body(wire: LiveWire, leaves: bool) -> None:
    ends: list[Exception] = []

    def put(call: Call) -> Any:
        try:
            return {"ETag": str(len(b"".join(call.parameters["Body"])))}
        except Exception as error:
            ends.append(error)
            raise

    wire.echo.answers["PutObject"] = put
    with closing(connect(wire)) as connection:
        connection.sendall(head("PUT", "/b/k", f"Content-Length: {MIB}") + b"x" * 1000)
        if leaves:
            until(lambda: wire.echo.calls)
            connection.close()
        until(lambda: ends)
        if not leaves:
            response = http.client.HTTPResponse(connection)
            response.begin()
            assert (response.status, response.headers["connection"]) == (400, "close")
            assert b"<Code>RequestTimeout</Code>" in response.read()
    assert isinstance(ends[0], ClientGone)


def test_a_short_body_that_does_not_come_holds_no_thread(wire: LiveWire) -> None:
    slow = [connect(wire) for _ in range(4)]
    try:
        for connection in slow:
            connection.sendall(head("POST", "/", "Content-Length: 10", "X-Amz-Target: SageMaker.ListModels") + b"{")
        assert wire.client("sagemaker").list_models()["ResponseMetadata"]["HTTPStatusCode"] == 200
        assert answer(slow[0])[0] == 408
    finally:
        for connection in slow:
            connection.close()


def test_health_is_answered_while_all_threads_work(wire: LiveWire) -> None:
    finish = threading.Event()
    wire.echo.answers["ListModels"] = lambda call: {"Models": []} if finish.wait(20) else {}
    threads = [threading.Thread(target=wire.client("sagemaker").list_models) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        until(lambda: len(wire.echo.calls) == 2)
        with urllib.request.urlopen(f"{wire.url}/_luthier/health", timeout=5) as response:
            assert response.read() == b"well"
        assert len(wire.echo.calls) == 2
    finally:
        finish.set()
        for thread in threads:
            thread.join()
    assert len(wire.echo.calls) == 3


@pytest.mark.parametrize("size", [10, 2 * MIB])
def test_a_connection_is_used_again_after_a_body_that_was_left_unread(wire: LiveWire, size: int) -> None:
    wire.echo.answers["PutObject"] = WireError("AccessDenied", "no", 403)
    with closing(http.client.HTTPConnection("127.0.0.1", wire.port, timeout=10)) as connection:
        for _ in range(3):
            connection.request("PUT", "/b/k", b"x" * size)
            response = connection.getresponse()
            assert (response.status, b"AccessDenied" in response.read()) == (403, True)
            assert response.getheader("connection") is None
            kept = connection.sock
        assert connection.sock is kept


def test_a_large_body_that_was_left_unread_ends_the_connection(wire: LiveWire) -> None:
    wire.echo.answers["PutObject"] = WireError("AccessDenied", "no", 403)
    with closing(connect(wire)) as connection:
        connection.sendall(head("PUT", "/b/k", f"Content-Length: {1000 * MIB}"))
        response = http.client.HTTPResponse(connection)
        response.begin()
        assert (response.status, response.headers["connection"]) == (403, "close")


def test_a_client_that_waits_is_asked_for_its_body(wire: LiveWire) -> None:
    wire.echo.answers["PutObject"] = lambda call: {"ETag": b"".join(call.parameters["Body"]).decode()}
    with closing(connect(wire)) as connection:
        connection.sendall(head("PUT", "/b/k", "Content-Length: 3", "Expect: 100-continue"))
        assert connection.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b"abc")
        assert answer(connection)[0] == 200


def test_a_client_that_waits_is_not_asked_when_it_is_refused(wire: LiveWire) -> None:
    wire.echo.answers["PutObject"] = WireError("AccessDenied", "no", 403)
    with closing(connect(wire)) as connection:
        connection.sendall(head("PUT", "/b/k", "Content-Length: 3", "Expect: 100-continue"))
        first = connection.recv(100_000)
        assert first.startswith(b"HTTP/1.1 403")
        assert b"connection: close" in first


def test_head_has_no_body(wire: LiveWire) -> None:
    wire.echo.answers["HeadObject"] = {"ContentLength": 5 * MIB, "ContentType": "text/csv", "Metadata": {"a": "b"}}
    wire.echo.answers["HeadBucket"] = WireError("NoSuchBucket", "none", 404)
    with closing(http.client.HTTPConnection("127.0.0.1", wire.port, timeout=10)) as connection:
        for _ in range(2):
            connection.request("HEAD", "/b/k")
            response = connection.getresponse()
            assert (response.status, response.getheader("content-length"), response.read()) == (200, str(5 * MIB), b"")
            assert response.getheader("x-amz-meta-a") == "b"
            connection.request("HEAD", "/b")
            response = connection.getresponse()
            assert (response.status, response.read()) == (404, b"")
    with pytest.raises(ClientError) as caught:
        wire.client("s3").head_bucket(Bucket="none")
    assert caught.value.response["Error"]["Code"] == "404"


def test_an_answer_that_breaks_off_is_seen_to(wire: LiveWire) -> None:
    def breaks() -> Iterator[bytes]:
        yield b"x" * 10
        raise RuntimeError

    for length in (100, None):
        wire.echo.answers["GetObject"] = {"Body": breaks(), "ContentLength": length}
        with pytest.raises(http.client.IncompleteRead), urllib.request.urlopen(f"{wire.url}/b/k") as response:
            response.read()


def test_headers_go_out_as_they_came(wire: LiveWire) -> None:
    def put(call: Call) -> Any:
        wire.echo.answers["HeadObject"] = {"Metadata": call.parameters["Metadata"], "ContentDisposition": "ü—"}
        return {}

    wire.echo.answers["PutObject"] = put
    value = "grün".encode()
    with closing(connect(wire)) as connection:
        connection.sendall(
            head("PUT", "/b/k", "Content-Length: 0").replace(b"\r\n\r\n", b"\r\nx-amz-meta-Farbe_1: %b\r\n\r\n" % value)
        )
        assert answer(connection)[0] == 200
    with closing(connect(wire)) as connection:
        connection.sendall(head("HEAD", "/b/k", "Connection: close"))
        received = b"".join(iter(lambda: connection.recv(65536), b""))
    assert b"x-amz-meta-farbe_1: " + value in received
    assert "content-disposition: ü—".encode() in received


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /\xff HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        b"GET /%zz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        b"BREW /pot HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        b"GET http://[/ HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\nConnection: close\r\n\r\n",
        b"PUT /b/k HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\nzz\r\n",
        b"nonsense\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nX-Amz-Target: SageMaker.ListModels\r\nX-Amz-Target: x\r\nContent-Length: 2\r\n"
        b"Connection: close\r\n\r\n{}",
    ],
)
def test_broken_requests_are_refused(wire: LiveWire, sent: bytes) -> None:
    with closing(connect(wire)) as connection:
        connection.sendall(sent)
        status, _ = answer(connection)
    assert 400 <= status < 500


def test_a_body_that_drips_does_not_hold_a_thread(wire: LiveWire) -> None:
    ends: list[Exception] = []

    def put(call: Call) -> Any:
        try:
            return {"ETag": str(len(b"".join(call.parameters["Body"])))}
        except Exception as error:
            ends.append(error)
            raise

    wire.echo.answers["PutObject"] = put
    with closing(connect(wire)) as connection:
        connection.sendall(head("PUT", "/b/k", f"Content-Length: {MIB}"))
        started = time.monotonic()
        while not ends and time.monotonic() - started < 10:
            connection.sendall(b"x")
            time.sleep(0.2)
    assert isinstance(ends[0], ClientGone)
