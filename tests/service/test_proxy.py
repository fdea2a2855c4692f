"""The HTTPS proxy: AWS's names end here and nowhere else, bytes pass whole, and the CA vouches for nothing beyond."""

from __future__ import annotations

import http.client
import http.server
import socket
import ssl
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509

from luthier.service.listener import listen
from luthier.service.proxy import HOST, Authority, Proxy, ProxyError

STS = "sts.us-west-2.amazonaws.com"
BIG = 3_000_000


class Echo(http.server.BaseHTTPRequestHandler):
    """Answers with the request's body, or with BIG bytes when there is none."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(body)

    def do_GET(self) -> None:
        self._answer(b"x" * BIG)

    def do_HEAD(self) -> None:
        self._answer(b"x" * BIG, send=False)

    def _answer(self, body: bytes, send: bool = True) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Host", self.headers["Host"])
        self.end_headers()
        if send:
            self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    count = 0

    def process_request(self, request: object, client_address: object) -> None:
        Server.count += 1
        super().process_request(request, client_address)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    server = Server(("127.0.0.1", 0), Echo)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    authority = Authority(tmp_path_factory.mktemp("home") / "proxy")
    made = Proxy(listen("127.0.0.1", 0), authority, ("127.0.0.1", server.server_address[1]))
    made.start()
    yield made
    made.stop()
    server.shutdown()
    server.server_close()


def connect(proxy: Proxy, host: str = STS) -> http.client.HTTPSConnection:
    trust = ssl.create_default_context(cafile=str(proxy.authority.certificate))
    trust.verify_flags |= ssl.VERIFY_X509_STRICT  # what Python 3.13 asks for by default
    connection = http.client.HTTPSConnection("127.0.0.1", proxy.port, context=trust, timeout=20)
    connection.set_tunnel(host, 443)
    return connection


def test_bytes_pass_whole_both_ways_on_one_connection(proxy: Proxy) -> None:
    before = Server.count
    connection = connect(proxy)
    for size in (0, 1, BIG):
        body = bytes(range(256)) * (size // 256) + b"y" * (size % 256)
        connection.request("POST", "/", body)
        answer = connection.getresponse()
        assert answer.read() == body
        assert answer.headers["X-Host"] == STS
    connection.request("HEAD", "/")
    answer = connection.getresponse()
    assert (answer.read(), answer.headers["Content-Length"]) == (b"", str(BIG))
    connection.request("GET", "/")
    assert len(connection.getresponse().read()) == BIG
    connection.close()
    assert Server.count == before + 1


def test_a_server_that_closes_first_has_all_it_sent_delivered(proxy: Proxy) -> None:
    connection = connect(proxy)
    connection.request("GET", "/", headers={"Connection": "close"})
    assert len(connection.getresponse().read()) == BIG
    connection.close()


def test_many_clients_at_once(proxy: Proxy) -> None:
    sizes: list[int] = []

    def fetch(number: int) -> None:
        connection = connect(proxy, f"bucket-{number}.s3.us-east-1.amazonaws.com")
        connection.request("GET", "/")
        sizes.append(len(connection.getresponse().read()))
        connection.close()

    threads = [threading.Thread(target=fetch, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sizes == [BIG] * 16


@pytest.mark.parametrize(
    "host", ["example.com", "amazonaws.com.evil.net", "127.0.0.1", "169.254.169.254", "sts.amazonaws.com.",
             "amazonaws.com", "evilamazonaws.com", "a..amazonaws.com", "localhost"],
)  # fmt: skip
def test_other_names_are_refused(proxy: Proxy, host: str) -> None:
    with pytest.raises(OSError, match="403 Forbidden"):
        connect(proxy, host).connect()


@pytest.mark.parametrize("port", [80, 22, 8443])
def test_other_ports_are_refused(proxy: Proxy, port: int) -> None:
    connection = http.client.HTTPSConnection("127.0.0.1", proxy.port, timeout=20)
    connection.set_tunnel(STS, port)
    with pytest.raises(OSError, match="403 Forbidden"):
        connection.connect()


def raw(proxy: Proxy, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=20) as client:
        client.sendall(request)
        return dropped(client)


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET http://sts.us-west-2.amazonaws.com/ HTTP/1.1\r\n\r\n", b"405"),
        (b"CONNECT\r\n\r\n", b"405"),
        (b"\xff\xfe\x00 a b\r\n\r\n", b"405"),
        (b"CONNECT " + b"a" * 40_000, b"431"),
        (f"CONNECT {STS}:443x HTTP/1.1\r\n\r\n".encode(), b"403"),
    ],
    ids=["plain http", "no target", "bytes", "endless", "port"],
)
def test_what_is_no_tunnel_is_refused(proxy: Proxy, request_: bytes, status: bytes) -> None:
    assert raw(proxy, request_).startswith(b"HTTP/1.1 " + status)


def test_a_client_that_speaks_no_tls_is_dropped(proxy: Proxy) -> None:
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=20) as client:
        client.sendall(f"CONNECT {STS}:443 HTTP/1.1\r\n\r\n".encode())
        assert client.recv(1024) == b"HTTP/1.1 200 Connection established\r\n\r\n"
        client.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert b"X-Host" not in dropped(client)


def dropped(client: socket.socket) -> bytes:
    """All that comes until the connection is closed."""
    parts = []
    try:
        while part := client.recv(65536):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


def test_the_ca_is_made_once_and_its_key_is_private(tmp_path: Path) -> None:
    folder = tmp_path / "proxy"
    first, second = Authority(folder), Authority(folder)
    assert first.certificate.read_bytes() == second.certificate.read_bytes()
    assert stat.S_IMODE((folder / "ca.key").stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    first.context(STS)
    assert sorted(path.name for path in folder.iterdir()) == ["ca.key", "ca.pem"]
    leaf = second.leaf(STS)
    leaf.verify_directly_issued_by(x509.load_pem_x509_certificate(first.certificate.read_bytes()))


def test_a_host_keeps_its_context(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "proxy")
    assert authority.context(STS) is authority.context(STS)


def test_the_ca_is_good_for_aws_names_only(tmp_path: Path) -> None:
    """Whoever trusts it is safe from its key for every other name: a leaf of example.com fails, an AWS one passes."""
    authority = Authority(tmp_path / "proxy")
    assert handshake(authority, STS) == ""
    assert "permitted subtree violation" in handshake(authority, "example.com")


def handshake(authority: Authority, host: str) -> str:
    """The client's complaint about the leaf of `host`; empty when it is content."""
    trust = ssl.create_default_context(cafile=str(authority.certificate))
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = trust.wrap_bio(incoming, outgoing, server_hostname=host)
    server = authority.context(host).wrap_bio(outgoing, incoming, server_side=True)
    for side in (client, server, client, server):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
        except ssl.SSLCertVerificationError as error:
            return error.verify_message
    return ""


def test_a_broken_ca_is_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "proxy"
    Authority(folder)
    (folder / "ca.key").write_text("nonsense")
    with pytest.raises(ProxyError, match="remove the folder for a new one"):
        Authority(folder)


@pytest.mark.parametrize(
    "host", [STS, "s3.amazonaws.com", "a.b-c.s3.eu-west-1.amazonaws.com", "sagemaker.cn-north-1.amazonaws.com.cn"]
)
def test_aws_names(host: str) -> None:
    assert HOST.fullmatch(host)
