"""Decode the aws-chunked content encoding; check a body's hash and its chunks' signatures while it streams.

Only a line and a chunk are in memory. A failed check raises an error at the end of the chunk or the body, so a reader
must not act on a body that has not ended. Knows no keys; a ChunkSigner has them.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterator
from typing import Protocol

from luthier.protocol.errors import WireError
from luthier.protocol.message import Request

HASH = "x-amz-content-sha256"
MAX_LINE_BYTES = 16 * 1024
MAX_BODY_BYTES = 5 * 1024**3  # of one request, S3's limit
UNSIGNED = "UNSIGNED-PAYLOAD"
STREAMING = "STREAMING-"
SIGNED_CHUNKS = ("STREAMING-AWS4-HMAC-SHA256-PAYLOAD", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER")
UNSIGNED_CHUNKS = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
_HEX_HASH = re.compile(r"[0-9a-f]{64}", re.IGNORECASE)
_CHUNK = re.compile(rb"([0-9a-fA-F]{1,16})(?:;chunk-signature=([0-9a-f]{64}))?")
_TRAILER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}):[ \t]*([\x20-\x7e\t]*)")


class ChunkSigner(Protocol):
    """The signatures of a body's chunks, each of which covers the previous one."""

    def chunk_signature(self, digest: str) -> str:
        """The expected signature of the next chunk, whose SHA-256 is `digest`."""

    def trailer_signature(self, digest: str) -> str:
        """The expected signature of the trailing fields."""


def decode_body(request: Request, signer: ChunkSigner | None = None) -> None:
    """Make `request.chunks` the decoded body, verified against its headers.

    The headers of the encoding are removed, so a second call changes nothing. Without a signer, the signatures of
    chunks are not checked.
    """
    headers = dict(request.headers)
    declared = headers.pop(HASH, "")
    encodings = [part.strip() for part in headers.get("content-encoding", "").split(",") if part.strip()]
    if declared not in ("", UNSIGNED, UNSIGNED_CHUNKS, *SIGNED_CHUNKS):
        if not _HEX_HASH.fullmatch(declared):
            raise WireError("InvalidArgument", f"{HASH} {declared[:80]!r} is not known here, and no SHA-256 in hex.")
        request.chunks = _verify_hash(request.chunks, declared.lower())
    if declared.startswith(STREAMING) or "aws-chunked" in encodings:
        length = _decoded_length(headers)
        signed = declared in SIGNED_CHUNKS
        request.chunks = _ChunkDecoder(request, length, signer if signed else None, signed).chunks()
        headers["content-length"] = str(length)
        encodings = [encoding for encoding in encodings if encoding != "aws-chunked"]
        headers.pop("content-encoding", None)
        headers.pop("x-amz-decoded-content-length", None)
        headers.pop("transfer-encoding", None)
        if encodings:
            headers["content-encoding"] = ",".join(encodings)
    request.headers = headers


def _decoded_length(headers: dict[str, str]) -> int:
    text = headers.get("x-amz-decoded-content-length", "")
    if not text:
        raise WireError("MissingContentLength", "You must provide the x-amz-decoded-content-length header.", 411)
    if not re.fullmatch(r"[0-9]{1,15}", text):
        raise WireError("InvalidArgument", "x-amz-decoded-content-length is not a length in bytes.")
    return int(text)


def _verify_hash(chunks: Iterator[bytes], declared: str) -> Iterator[bytes]:
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
        yield chunk
    if not hmac.compare_digest(digest.hexdigest(), declared):
        raise WireError(
            "XAmzContentSHA256Mismatch", "The provided 'x-amz-content-sha256' header does not match what was computed."
        )


class _ChunkDecoder:
    """An aws-chunked body: lines `size[;chunk-signature=..]`, each followed by its data, then trailing fields."""

    def __init__(self, request: Request, length: int, signer: ChunkSigner | None, signed: bool) -> None:
        self.request, self.source, self.length = request, request.chunks, length
        self.signer, self.signed = signer, signed
        self.buffer = bytearray()

    def chunks(self) -> Iterator[bytes]:
        """The data; WireError IncompleteBody, InvalidRequest or SignatureDoesNotMatch."""
        total = 0
        while True:
            size, signature = self._head()
            total += size
            if total > self.length:
                raise _incomplete(f"the chunks hold more than the {self.length:,} bytes announced")
            digest = hashlib.sha256()
            for piece in self._data(size):
                digest.update(piece)
                yield piece
            if self.signer:
                self._check(self.signer.chunk_signature(digest.hexdigest()), signature)
            if not size:
                break
            if self._line():
                raise _malformed("a chunk is longer than its size says")
        if total != self.length:
            raise _incomplete(f"the chunks hold {total:,} bytes, {self.length:,} were announced")
        self._trailers()

    def _head(self) -> tuple[int, str]:
        line = self._line()
        match = _CHUNK.fullmatch(line)
        if not match or (self.signed and match[2] is None):
            raise _malformed("expected a chunk's size" + (" and signature" if self.signed else ""))
        size = int(match[1], 16)
        if size > MAX_BODY_BYTES:
            raise _malformed("a chunk is too large")
        return size, (match[2] or b"").decode()

    def _data(self, size: int) -> Iterator[bytes]:
        while size:
            if not self.buffer and not self._fill():
                raise _incomplete("the body ends in the midst of a chunk")
            piece = bytes(self.buffer[:size])
            del self.buffer[: len(piece)]
            size -= len(piece)
            yield piece

    def _trailers(self) -> None:
        trailers: dict[str, str] = {}
        size, text = 0, b""
        while line := self._line(end_allowed=True):
            match, size = _TRAILER.fullmatch(line), size + len(line)
            if not match or size > MAX_LINE_BYTES:
                raise _malformed("expected trailing fields")
            name, value = match[1].decode().lower(), match[2].decode().strip()
            if name == "x-amz-trailer-signature":
                if self.signer:
                    self._check(self.signer.trailer_signature(hashlib.sha256(text).hexdigest()), value)
                    self.signer = None
                continue
            trailers[name] = value
            text += f"{name}:{value}\n".encode()
        if trailers and self.signer:
            raise _mismatch()
        if self.buffer.strip(b"\r\n") or any(chunk.strip(b"\r\n") for chunk in self.source):
            raise _malformed("something follows the last chunk")
        self.request.trailers.update(trailers)

    def _check(self, expected: str, actual: str) -> None:
        if not hmac.compare_digest(expected, actual):
            raise _mismatch()

    def _line(self, end_allowed: bool = False) -> bytes:
        while (end := self.buffer.find(b"\r\n")) < 0:
            if len(self.buffer) > MAX_LINE_BYTES:
                raise _malformed("a line is too long")
            if not self._fill():
                if end_allowed and not self.buffer:
                    return b""
                raise _incomplete("the body ends before its last chunk")
        line = bytes(self.buffer[:end])
        del self.buffer[: end + 2]
        return line

    def _fill(self) -> bool:
        for chunk in self.source:
            self.buffer += chunk
            if chunk:
                return True
        return False


def _incomplete(what: str) -> WireError:
    return WireError("IncompleteBody", f"The aws-chunked body is not whole: {what}.")


def _malformed(what: str) -> WireError:
    return WireError("InvalidRequest", f"The aws-chunked body is malformed: {what}.")


def _mismatch() -> WireError:
    return WireError("SignatureDoesNotMatch", "The signature of a chunk or of the trailing fields does not match.", 403)
