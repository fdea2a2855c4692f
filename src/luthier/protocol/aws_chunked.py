"""A body as its sender meant it: AWS's chunks taken apart, its hash and its chunks' signatures checked while it passes.

Nothing is held but a line and a piece: what a check finds wrong comes as an error at the end of the chunk or the body,
so a reader must not act on a body that has not ended. Knows nothing of keys; a ChunkSigner has them.
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
MAX_CHUNK_BYTES = 5 * 1024**3
UNSIGNED = "UNSIGNED-PAYLOAD"
STREAMING = "STREAMING-"
SIGNED_CHUNKS = ("STREAMING-AWS4-HMAC-SHA256-PAYLOAD", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER")
UNSIGNED_CHUNKS = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
_HEX_HASH = re.compile(r"[0-9a-f]{64}", re.IGNORECASE)
_CHUNK = re.compile(rb"([0-9a-fA-F]{1,16})(?:;chunk-signature=([0-9a-f]{64}))?")
_TRAILER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}):[ \t]*([\x20-\x7e\t]*)")


class ChunkSigner(Protocol):
    """The signatures of a body's chunks, each built on the one before."""

    def of_chunk(self, digest: str) -> str:
        """The signature that the next chunk, whose SHA-256 is `digest`, must carry."""

    def of_trailer(self, digest: str) -> str:
        """The signature that the trailing fields must carry."""


def unframe(request: Request, signer: ChunkSigner | None = None) -> None:
    """Let `request.chunks` be the plain body, checked against what its headers say of it.

    The headers of the framing go, so a second call changes nothing. Without a signer, the signatures of chunks are not
    checked.
    """
    headers = dict(request.headers)
    declared = headers.pop(HASH, "")
    encodings = [part.strip() for part in headers.get("content-encoding", "").split(",") if part.strip()]
    if declared not in ("", UNSIGNED, UNSIGNED_CHUNKS, *SIGNED_CHUNKS):
        if not _HEX_HASH.fullmatch(declared):
            raise WireError("InvalidArgument", f"{HASH} {declared[:80]!r} is not known here, and no SHA-256 in hex.")
        request.chunks = _hashed(request.chunks, declared.lower())
    if declared.startswith(STREAMING) or "aws-chunked" in encodings:
        length = _decoded_length(headers)
        signed = declared in SIGNED_CHUNKS
        request.chunks = _Frames(request, length, signer if signed else None, signed).chunks()
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


def _hashed(chunks: Iterator[bytes], declared: str) -> Iterator[bytes]:
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
        yield chunk
    if not hmac.compare_digest(digest.hexdigest(), declared):
        raise WireError(
            "XAmzContentSHA256Mismatch", "The provided 'x-amz-content-sha256' header does not match what was computed."
        )


class _Frames:
    """An aws-chunked body being read: lines `size[;chunk-signature=..]`, each with its data, then trailing fields."""

    def __init__(self, request: Request, length: int, signer: ChunkSigner | None, signed: bool) -> None:
        self.request, self.source, self.length = request, request.chunks, length
        self.signer, self.signed = signer, signed
        self.held = bytearray()

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
                self._check(self.signer.of_chunk(digest.hexdigest()), signature)
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
        if size > MAX_CHUNK_BYTES:
            raise _malformed("a chunk is too large")
        return size, (match[2] or b"").decode()

    def _data(self, size: int) -> Iterator[bytes]:
        while size:
            if not self.held and not self._more():
                raise _incomplete("the body ends in the midst of a chunk")
            piece = bytes(self.held[:size])
            del self.held[: len(piece)]
            size -= len(piece)
            yield piece

    def _trailers(self) -> None:
        found: dict[str, str] = {}
        size, text = 0, b""
        while line := self._line(end_allowed=True):
            match, size = _TRAILER.fullmatch(line), size + len(line)
            if not match or size > MAX_LINE_BYTES:
                raise _malformed("expected trailing fields")
            name, value = match[1].decode().lower(), match[2].decode().strip()
            if name == "x-amz-trailer-signature":
                if self.signer:
                    self._check(self.signer.of_trailer(hashlib.sha256(text).hexdigest()), value)
                    self.signer = None
                continue
            found[name] = value
            text += f"{name}:{value}\n".encode()
        if found and self.signer:
            raise _mismatch()
        if self.held.strip(b"\r\n") or any(chunk.strip(b"\r\n") for chunk in self.source):
            raise _malformed("something follows the last chunk")
        self.request.trailers.update(found)

    def _check(self, expected: str, given: str) -> None:
        if not hmac.compare_digest(expected, given):
            raise _mismatch()

    def _line(self, end_allowed: bool = False) -> bytes:
        while (end := self.held.find(b"\r\n")) < 0:
            if len(self.held) > MAX_LINE_BYTES:
                raise _malformed("a line is too long")
            if not self._more():
                if end_allowed and not self.held:
                    return b""
                raise _incomplete("the body ends before its last chunk")
        line = bytes(self.held[:end])
        del self.held[: end + 2]
        return line

    def _more(self) -> bool:
        for chunk in self.source:
            self.held += chunk
            if chunk:
                return True
        return False


def _incomplete(what: str) -> WireError:
    return WireError("IncompleteBody", f"The aws-chunked body is not whole: {what}.")


def _malformed(what: str) -> WireError:
    return WireError("InvalidRequest", f"The aws-chunked body is malformed: {what}.")


def _mismatch() -> WireError:
    return WireError("SignatureDoesNotMatch", "The signature of a chunk or of the trailing fields does not match.", 403)
