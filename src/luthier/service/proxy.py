"""The HTTPS proxy: directs clients that always use https://*.amazonaws.com to this server, by environment variables.

    client ── CONNECT sts.us-west-2.amazonaws.com:443 ──► proxy      only AWS's host names; others get 403
           ◄─ 200, then TLS with a leaf of this install's own CA ─►
           ── the bytes inside ──────────────────────────────► the server's HTTP port

Inside the tunnel it copies bytes without parsing them, so keep-alive, HEAD and streams work as on the HTTP port. It
listens on loopback only. The CA is created once per home, its key is readable by its owner only, and name constraints
limit it to AWS's host names.
"""

from __future__ import annotations

import asyncio
import datetime
import hashlib
import logging
import os
import re
import socket
import ssl
import tempfile
import threading
from collections import OrderedDict
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from luthier.errors import LuthierError

DOMAINS = ("amazonaws.com", "amazonaws.com.cn")
HOST = re.compile(r"(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)+(?:" + "|".join(map(re.escape, DOMAINS)) + ")")
HEAD_LIMIT = 16 * 1024  # bytes of a CONNECT request
HEAD_SECONDS = 30.0
CONNECTIONS = 512
MAX_CERTIFICATES = 256  # cached; S3 has a host name for every bucket
CHUNK = 64 * 1024
YEARS = 10

_log = logging.getLogger(__name__)


class ProxyError(LuthierError):
    """The proxy's certificate authority cannot be read."""


class Authority:
    """The certificate authority of one home, and TLS contexts by host."""

    def __init__(self, folder: Path) -> None:
        """Read the CA in `folder`, or create it: ca.pem for clients to trust, ca.key (0600)."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder = folder
        self.certificate = folder / "ca.pem"
        key = folder / "ca.key"
        if not key.exists() or not self.certificate.exists():
            _make_authority(key, self.certificate)
        try:
            loaded = serialization.load_pem_private_key(key.read_bytes(), None)
            self._ca = x509.load_pem_x509_certificate(self.certificate.read_bytes())
        except (ValueError, TypeError) as error:
            raise ProxyError(f"{folder}: its CA cannot be read ({error}); remove the folder for a new one") from None
        if not isinstance(loaded, ec.EllipticCurvePrivateKey):
            raise ProxyError(f"{key}: not a key that Luthier made; remove {folder} for a new one")
        self._key = loaded
        self._leaf_key = ec.generate_private_key(ec.SECP256R1())
        self._contexts: OrderedDict[str, ssl.SSLContext] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def digest(self) -> str:
        """The SHA-256 of the file of the CA's certificate, in hex."""
        return hashlib.sha256(self.certificate.read_bytes()).hexdigest()

    def context(self, host: str) -> ssl.SSLContext:
        """The server's TLS context for `host`, cached."""
        with self._lock:
            if host not in self._contexts:
                self._contexts[host] = self._make_context(host)
                while len(self._contexts) > MAX_CERTIFICATES:
                    self._contexts.popitem(last=False)
            self._contexts.move_to_end(host)
            return self._contexts[host]

    def _make_context(self, host: str) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        pem = _private(self._leaf_key) + self.leaf(host).public_bytes(serialization.Encoding.PEM)
        # The ssl module reads only files; this one is in the CA's folder, 0600, and removed at once.
        with tempfile.NamedTemporaryFile(dir=self.folder, suffix=".pem") as handle:
            handle.write(pem)
            handle.flush()
            context.load_cert_chain(handle.name)
        return context

    def leaf(self, host: str) -> x509.Certificate:
        """A certificate for `host`, valid as long as the CA."""
        ca_id = self._ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
        return (
            x509.CertificateBuilder()
            .subject_name(_name("Luthier proxy"))
            .issuer_name(self._ca.subject)
            .public_key(self._leaf_key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(self._ca.not_valid_before_utc)
            .not_valid_after(self._ca.not_valid_after_utc)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(usage, critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(ca_id), critical=False)
            .sign(self._key, hashes.SHA256())
        )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    no_encryption = serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, no_encryption)


def _make_authority(key_file: Path, certificate_file: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)
    name = _name(f"Luthier on {socket.gethostname()}"[:64])
    usage = dict.fromkeys(
        ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
         "encipher_only", "decipher_only"), False,
    )  # fmt: skip
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))  # clocks differ
        .not_valid_after(now + datetime.timedelta(days=365 * YEARS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.KeyUsage(key_cert_sign=True, crl_sign=True, **usage), critical=True)
        .add_extension(x509.NameConstraints([x509.DNSName(domain) for domain in DOMAINS], None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    _write(key_file, _private(key), 0o600)
    _write(certificate_file, certificate.public_bytes(serialization.Encoding.PEM), 0o644)


def _write(path: Path, content: bytes, mode: int) -> None:
    """Write a file atomically, with its mode from the start."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as handle:
        handle.write(content)
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(temporary, path)


class Proxy:
    """The proxy on `listener`, a bound socket on loopback; `target` is the server's own (host, port)."""

    def __init__(self, listener: socket.socket, authority: Authority, target: tuple[str, int]) -> None:
        self.port = int(listener.getsockname()[1])
        self._listener, self.authority, self._target = listener, authority, target
        self._open: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._ended = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Close every tunnel and end the thread."""
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve_all())

    async def _serve_all(self) -> None:
        server = await asyncio.start_server(self._accept, sock=self._listener, limit=HEAD_LIMIT)
        await self._ended.wait()
        server.close()
        for task in self._open:
            task.cancel()
        if self._open:
            await asyncio.wait(self._open)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            await self._serve(reader, writer)
        except (OSError, ssl.SSLError, EOFError, TimeoutError, asyncio.CancelledError) as error:
            _log.debug("tunnel ended: %r", error)
        except Exception:
            _log.exception("the proxy failed on a connection")
        finally:
            self._open.discard(task)
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._open) > CONNECTIONS:
            return await _refuse(writer, 503, f"too many connections; the limit is {CONNECTIONS}")
        try:
            async with asyncio.timeout(HEAD_SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            return await _refuse(writer, 431, "request header too long")
        words = head.split(b"\r\n", 1)[0].decode("latin-1").split()
        if len(words) != 3 or words[0].upper() != "CONNECT":
            return await _refuse(writer, 405, "this is an HTTPS proxy: only CONNECT is supported")
        host, _, port = words[1].lower().partition(":")
        if port != "443" or not HOST.fullmatch(host):
            return await _refuse(writer, 403, f"{words[1]}: this proxy connects to AWS's host names, port 443, only")
        context = await asyncio.get_running_loop().run_in_executor(None, self.authority.context, host)
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        await writer.drain()
        await writer.start_tls(context, ssl_handshake_timeout=HEAD_SECONDS)
        await self._relay(reader, writer)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Copy bytes in both directions until one end closes."""
        up_reader, up_writer = await asyncio.open_connection(*self._target)
        copies = [asyncio.ensure_future(_copy(reader, up_writer)), asyncio.ensure_future(_copy(up_reader, writer))]
        try:
            await asyncio.wait(copies, return_when=asyncio.FIRST_COMPLETED)
            if copies[1].done():
                await _finish(writer)
        finally:
            for copy in copies:
                copy.cancel()
            await asyncio.gather(*copies, return_exceptions=True)
            up_writer.transport.abort()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while chunk := await reader.read(CHUNK):
        writer.write(chunk)
        await writer.drain()


async def _finish(writer: asyncio.StreamWriter) -> None:
    """Close after everything written has been sent."""
    writer.close()
    async with asyncio.timeout(HEAD_SECONDS):
        await writer.wait_closed()


async def _refuse(writer: asyncio.StreamWriter, status: int, why: str) -> None:
    reasons = {403: "Forbidden", 405: "Method Not Allowed", 431: "Request Header Fields Too Large"}
    body = f"luthier: {why}\n".encode()
    head = f"HTTP/1.1 {status} {reasons.get(status, 'Service Unavailable')}\r\nContent-Length: {len(body)}\r\n"
    writer.write(head.encode() + b"Content-Type: text/plain\r\nConnection: close\r\n\r\n" + body)
    await writer.drain()
    await _finish(writer)
