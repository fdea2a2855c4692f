"""One HTTP exchange, free of any server: what came in, what goes out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from luthier.protocol.errors import WireError


@dataclass(slots=True)
class Request:
    """A request as it was sent: `path` and `query` still percent-encoded, names of `headers` in lower case.

    A header sent twice holds both values, joined by ", ". `chunks` is the body and can be read once; `peer` is the
    caller's address. `trailers` are the fields sent after the body (a checksum), there once `chunks` has ended.
    """

    method: str
    path: str
    query: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    chunks: Iterator[bytes] = field(default_factory=lambda: iter(()))
    peer: str = ""
    trailers: dict[str, str] = field(default_factory=dict)

    @property
    def announced(self) -> int:
        """The size of the body as its header says it; 0 where none does."""
        text = self.headers.get("content-length", "0")
        return int(text[:18]) if text.isdecimal() else 0

    def body(self, limit: int) -> bytes:
        """The whole body; WireError RequestEntityTooLargeException as soon as it passes `limit` bytes."""
        parts, size = [], 0
        for chunk in self.chunks:
            size += len(chunk)
            if size > limit:
                raise _too_large(limit)
            parts.append(chunk)
        return b"".join(parts)

    def refuse_announced(self, limit: int) -> None:
        """The same refusal of a body over `limit`, as soon as its header says so."""
        if self.announced > limit:
            raise _too_large(limit)


@dataclass(slots=True)
class Response:
    """An answer; a `body` that is an iterator is sent as it comes."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | Iterator[bytes] = b""


def _too_large(limit: int) -> WireError:
    text = f"the request's body is over {limit:,} bytes, the most taken"
    return WireError("RequestEntityTooLargeException", text, 413)
