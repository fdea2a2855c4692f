"""HTTP requests and responses, independent of any server."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from luthier.protocol.errors import WireError


@dataclass(slots=True, kw_only=True)
class Request:
    """A request as it was sent: `path` and `query` still percent-encoded, names of `headers` in lower case.

    A header sent twice holds both values, joined by ", ". `chunks` is the body and can be read once; `peer` is the
    client's address. `trailers` are the fields sent after the body (a checksum), complete once `chunks` has ended.
    """

    method: str
    path: str
    query: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    chunks: Iterator[bytes] = field(default_factory=lambda: iter(()))
    peer: str = ""
    trailers: dict[str, str] = field(default_factory=dict)

    @property
    def content_length(self) -> int:
        """The size of the body in bytes by its header; 0 without a header."""
        text = self.headers.get("content-length", "0")
        return int(text[:18]) if text.isdecimal() else 0

    def body(self, limit: int) -> bytes:
        """The whole body; WireError RequestEntityTooLargeException as soon as it exceeds `limit` bytes."""
        parts, size = [], 0
        for chunk in self.chunks:
            size += len(chunk)
            if size > limit:
                raise _too_large(limit)
            parts.append(chunk)
        return b"".join(parts)

    def check_content_length(self, limit: int) -> None:
        """WireError RequestEntityTooLargeException if the header announces more than `limit` bytes."""
        if self.content_length > limit:
            raise _too_large(limit)


@dataclass(slots=True)
class Response:
    """A response; a `body` that is an iterator is streamed."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | Iterator[bytes] = b""


def _too_large(limit: int) -> WireError:
    text = f"the request's body is over {limit:,} bytes, the most taken"
    return WireError("RequestEntityTooLargeException", text, 413)
