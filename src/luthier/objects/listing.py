"""One page of keys with common prefixes, by prefix, delimiter, start and limit, from any sorted source.

A position is the lowest key, in bytes, that may follow. After a common prefix, the next position is after all keys that
begin with it, so a folder of a million keys costs one query.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import quote

from luthier.objects.errors import s3_error
from luthier.objects.queries import StoredObject

PAGE = 1000  # S3's maximum number of entries
FOLDED_BATCH = 32  # rows per query while most may be below one common prefix

Fetch = Callable[[bytes, bytes | None, int], Sequence[StoredObject]]  # from, before, how many


@dataclass(frozen=True, slots=True)
class KeyPage:
    """`entries` are objects and common prefixes in order; `following` is where the next page starts, if any."""

    entries: list[StoredObject | str]
    following: bytes | None = None

    @property
    def objects(self) -> list[StoredObject]:
        return [entry for entry in self.entries if isinstance(entry, StoredObject)]

    @property
    def prefixes(self) -> list[str]:
        return [entry for entry in self.entries if isinstance(entry, str)]


def page(fetch: Fetch, prefix: bytes, delimiter: bytes, start: bytes, limit: int) -> KeyPage:
    """At most `limit` objects and common prefixes from position `start` on."""
    end = successor(prefix)
    position: bytes | None = max(start, prefix)
    entries: list[StoredObject | str] = []
    batch = FOLDED_BATCH if delimiter else PAGE + 1
    while position is not None and (end is None or position < end):
        count = min(limit - len(entries) + 1, batch)
        batch_rows = fetch(position, end, count)
        batch = min(batch * 4, PAGE + 1)
        for entry in batch_rows:
            key = entry.key.encode("utf-8")
            if position is None or key < position:
                batch = FOLDED_BATCH  # below a common prefix: a new query from its end is cheaper
                continue
            if len(entries) == limit:
                return KeyPage(entries, key) if limit else KeyPage([])
            folded = _common_prefix(key, prefix, delimiter)
            entries.append(folded.decode("utf-8", "surrogateescape") if folded else entry)
            position = successor(folded) if folded else key + b"\0"
        if len(batch_rows) < count:
            break
    return KeyPage(entries)


def _common_prefix(key: bytes, prefix: bytes, delimiter: bytes) -> bytes:
    """The common prefix of `key`: up to the first delimiter after `prefix`; empty for none."""
    at = key.find(delimiter, len(prefix)) if delimiter else -1
    return key[: at + len(delimiter)] if at >= 0 else b""


def after(marker: bytes, prefix: bytes, delimiter: bytes) -> bytes:
    """The first position after a marker, a key or a common prefix of an earlier page."""
    if not marker:
        return b""
    if _common_prefix(marker, prefix, delimiter) == marker and marker.startswith(prefix):
        return successor(marker) or marker + b"\0"
    return marker + b"\0"


def successor(prefix: bytes) -> bytes | None:
    """The lowest position after all keys that begin with `prefix`; None if none can follow."""
    kept = prefix.rstrip(b"\xff")
    return kept[:-1] + bytes([kept[-1] + 1]) if kept else None


def to_token(position: bytes) -> str:
    return base64.urlsafe_b64encode(b"1" + position).decode("ascii")


def from_token(token: str) -> bytes:
    """The inverse of `to_token`; WireError for an invalid token."""
    try:
        decoded = base64.b64decode(token.encode("ascii"), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        decoded = b""
    if decoded[:1] != b"1":
        raise s3_error("InvalidArgument", "The continuation token provided is incorrect")
    return decoded[1:]


def encoder(encoding: str | None) -> Callable[[str], str]:
    """The function that encodes keys for the response: unchanged or percent-encoded."""
    if encoding is None:
        return lambda text: text
    if encoding != "url":
        raise s3_error("InvalidArgument", "Invalid Encoding Method specified in Request")
    return lambda text: quote(text, safe="/*")


def page_size(requested: int | None, name: str) -> int:
    """The maximum number of entries on a page; WireError InvalidArgument for a negative number."""
    if requested is None:
        return PAGE
    if requested < 0:
        raise s3_error("InvalidArgument", f"Argument {name} must be an integer between 0 and 2147483647")
    return min(requested, PAGE)
