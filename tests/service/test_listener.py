"""Listening, and the bounds of a request's head."""

from __future__ import annotations

import contextlib
import http.client
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator

import pytest

from luthier.errors import UserError
from luthier.service.listener import HEAD_BYTES, listen

PROGRAM = """
    from luthier.service import listener
    listener.HEAD_SECONDS = 1.0

    async def application(scope, receive, send):
        size, more = 0, True
        while more:
            message = await receive()
            size += len(message.get("body", b""))
            more = message.get("more_body", False)
        body = str(size).encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
        await send({"type": "http.response.body", "body": body})

    opened = listener.listen("127.0.0.1", 0)
    listener.serve(application, opened, lambda: print(opened.getsockname()[1], flush=True))
"""


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """A server that answers with the length of the body, as a process: signals belong to its main thread."""
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield int(process.stdout.readline())
        process.terminate()
        assert process.wait(30) == 0


def test_bodies_and_keep_alive_pass(port: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    for size in (0, 10, 3 * HEAD_BYTES, 5_000_000, 1):
        connection.request("POST", "/", b"x" * size)
        assert connection.getresponse().read() == str(size).encode()
    connection.close()


def test_a_head_of_many_kilobytes_passes(port: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", "/", headers={"X-Long": "x" * (HEAD_BYTES - 1000)})
    assert connection.getresponse().read() == b"0"
    connection.close()


@pytest.mark.parametrize("start", [b"GET /", b"GET / HTTP/1.1\r\nX-Long: "], ids=["line", "header"])
def test_a_head_without_end_is_refused(port: int, start: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        client.sendall(start)
        sent = 0
        try:
            while sent < 50 * HEAD_BYTES:
                client.sendall(b"x" * HEAD_BYTES)
                sent += HEAD_BYTES
            assert client.recv(1000).startswith(b"HTTP/1.1 400")
        except ConnectionError:
            assert sent < 50 * HEAD_BYTES


def rest(client: socket.socket) -> bytes:
    """What still comes before the connection is closed, which may be by a reset."""
    with contextlib.suppress(ConnectionResetError):
        return client.recv(1000)
    return b""


@pytest.mark.parametrize("start", [b"", b"GET / HTTP/1.1\r\nHost"], ids=["nothing", "half"])
def test_a_head_that_does_not_come_ends_the_connection(port: int, start: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        client.sendall(start)
        assert rest(client) == b""


def test_a_second_head_that_does_not_come_ends_it_too(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        client.sendall(b"POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc")
        answer = b""
        while not answer.endswith(b"\r\n\r\n3"):
            answer += client.recv(1000)
        client.sendall(b"GET / HT")
        assert rest(client) == b""


def test_a_port_in_use_names_the_option() -> None:
    with listen("127.0.0.1", 0) as first, pytest.raises(UserError, match=r"in use; .* choose another --proxy-port"):
        listen("127.0.0.1", first.getsockname()[1], "--proxy-port")


def test_an_address_of_another_machine() -> None:
    with pytest.raises(UserError, match="not an address of this machine"):
        listen("203.0.113.1", 0)


def test_the_sixth_protocol() -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6")
    try:
        with listen("::1", 0) as listener:
            assert listener.family == socket.AF_INET6
    except UserError:
        pytest.skip("no IPv6 address")
