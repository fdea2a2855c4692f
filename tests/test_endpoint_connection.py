"""Connections to an endpoint's process: kept alive, never poisoned, and no request processed twice."""

from __future__ import annotations

import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from luthier import endpoint_connection
from luthier.endpoint_connection import EndpointConnections, EndpointUnreachableError

Respond = Callable[[socket.socket, bytes], bool]
"""Responds to one request; whether the connection stays open."""


class Process:
    """A stand-in for an endpoint's process, which counts its connections and requests."""

    def __init__(self, address: str, respond: Respond) -> None:
        self.address, self.respond = address, respond
        self.connections, self.requests = 0, 0
        self._open: list[socket.socket] = []
        self._listener = socket.socket(socket.AF_UNIX)
        Path(address).unlink(missing_ok=True)
        self._listener.bind(address)
        self._listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._open.append(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as lines:
            while first := lines.readline():
                head = [first, *iter(lines.readline, b"\r\n")]
                length = next((int(line.split(b":")[1]) for line in head if line.lower().startswith(b"content-l")), 0)
                self.requests += 1
                if not self.respond(connection, lines.read(length)):
                    return

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._open:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue


def echo(connection: socket.socket, body: bytes) -> bool:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
    return True


@pytest.fixture
def start() -> Iterator[Callable[[Respond], Process]]:
    """Start a process at one address; the one before it is ended."""
    processes: list[Process] = []
    with tempfile.TemporaryDirectory() as folder:

        def start_one(respond: Respond) -> Process:
            for process in processes[-1:]:
                process.close()
            processes.append(Process(f"{folder}/e.sock", respond))
            return processes[-1]

        yield start_one
        for process in processes[-1:]:
            process.close()


@pytest.fixture
def connections() -> Iterator[EndpointConnections]:
    pool = EndpointConnections(5.0)
    yield pool
    for connection in pool._idle:
        connection.close()


def post(connections: EndpointConnections, process: Process, body: bytes) -> bytes:
    return connections.request(process.address, "POST", "/invocations", body).read()


def test_two_requests_use_one_connection(start: Callable[[Respond], Process], connections: EndpointConnections) -> None:
    process = start(echo)
    assert [post(connections, process, body) for body in (b"a", b"", b"b" * 100_000)] == [b"a", b"", b"b" * 100_000]
    assert (process.connections, process.requests) == (1, 3)


def test_a_restarted_process_is_reached(start: Callable[[Respond], Process], connections: EndpointConnections) -> None:
    assert post(connections, start(echo), b"a") == b"a"
    process = start(echo)
    assert post(connections, process, b"b") == b"b"
    assert process.requests == 1


def test_a_response_that_is_not_read_to_the_end_closes_its_connection(
    start: Callable[[Respond], Process], connections: EndpointConnections
) -> None:
    def stream(connection: socket.socket, body: bytes) -> bool:
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n")
        if body == b"whole":
            connection.sendall(b"0\r\n\r\n")
        return True

    process = start(stream)
    with connections.request(process.address, "POST", "/", b"part") as response:
        assert next(response) == b"one"
    assert post(connections, process, b"whole") == b"one"
    assert post(connections, process, b"whole") == b"one"
    assert process.connections == 2


def test_a_request_that_may_have_been_processed_is_not_sent_again(
    start: Callable[[Respond], Process], connections: EndpointConnections
) -> None:
    def crash(connection: socket.socket, body: bytes) -> bool:
        return body != b"crash" and echo(connection, body)

    process = start(crash)
    assert post(connections, process, b"a") == b"a"
    with pytest.raises(EndpointUnreachableError, match="it cannot be reached"):
        post(connections, process, b"crash")
    assert (process.connections, process.requests) == (1, 2)
    assert post(connections, process, b"b") == b"b"


def test_a_request_that_was_not_sent_whole_is_sent_again(
    start: Callable[[Respond], Process], connections: EndpointConnections, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert post(connections, start(echo), b"a") == b"a"
    process = start(echo)
    # The process closes the connection between the check and the request.
    monkeypatch.setattr(endpoint_connection.EndpointConnection, "is_stale", False)
    assert post(connections, process, b"b") == b"b"
    assert process.requests == 1


def test_a_body_that_ends_early_is_an_error(
    start: Callable[[Respond], Process], connections: EndpointConnections
) -> None:
    def half(connection: socket.socket, body: bytes) -> bool:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
        return False

    with pytest.raises(EndpointUnreachableError, match="IncompleteRead"):
        post(connections, start(half), b"")


def test_idle_connections_are_bounded_and_closed(
    start: Callable[[Respond], Process], connections: EndpointConnections, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint_connection, "MAX_IDLE", 2)
    process = start(echo)
    responses = [connections.request(process.address, "POST", "/", b"x") for _ in range(4)]
    assert [response.read() for response in responses] == [b"x"] * 4
    assert len(connections._idle) == 2
    monkeypatch.setattr(endpoint_connection, "IDLE_SECONDS", 0.01)
    time.sleep(0.05)
    post(connections, process, b"y")
    assert (process.connections, len(connections._idle)) == (5, 1)


def test_threads_share_a_pool(start: Callable[[Respond], Process], connections: EndpointConnections) -> None:
    process = start(echo)
    results: list[bool] = []

    def send(number: int) -> None:
        results.extend(post(connections, process, b"%d" % number) == b"%d" % number for _ in range(50))

    threads = [threading.Thread(target=send, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 200
    assert process.requests == 200
    assert process.connections <= 4
