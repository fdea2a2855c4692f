"""One page of keys, as S3 folds them: by prefix, delimiter, start and limit, from any sorted source.

Positions are bytes: the lowest key that may still follow. A page that ends in a folded prefix goes on after everything
that begins with it, so a folder of a million keys costs one step.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import quote

from luthier.objects.errors import refusal
from luthier.objects.queries import Object

PAGE = 1000  # S3's most
FOLDED = 32  # rows asked for at once where most may lie below one folded prefix

Fetch = Callable[[bytes, bytes | None, int], Sequence[Object]]  # from, before, how many


@dataclass(frozen=True, slots=True)
class Page:
    """`entries` are objects and folded prefixes in order; `following` is where the next page begins, if any does."""

    entries: list[Object | str]
    following: bytes | None = None

    @property
    def objects(self) -> list[Object]:
        return [entry for entry in self.entries if isinstance(entry, Object)]

    @property
    def prefixes(self) -> list[str]:
        return [entry for entry in self.entries if isinstance(entry, str)]


def page(fetch: Fetch, prefix: bytes, delimiter: bytes, start: bytes, limit: int) -> Page:
    """At most `limit` objects and folded prefixes, from `start` on."""
    end = successor(prefix)
    position: bytes | None = max(start, prefix)
    entries: list[Object | str] = []
    batch = FOLDED if delimiter else PAGE + 1
    while position is not None and (end is None or position < end):
        wanted = min(limit - len(entries) + 1, batch)
        found = fetch(position, end, wanted)
        batch = min(batch * 4, PAGE + 1)
        for entry in found:
            key = entry.key.encode("utf-8")
            if position is None or key < position:
                batch = FOLDED  # below a prefix that was folded: asking from its end on is cheaper
                continue
            if len(entries) == limit:
                return Page(entries, key) if limit else Page([])
            folded = _folded(key, prefix, delimiter)
            entries.append(folded.decode("utf-8", "surrogateescape") if folded else entry)
            position = successor(folded) if folded else key + b"\0"
        if len(found) < wanted:
            break
    return Page(entries)


def _folded(key: bytes, prefix: bytes, delimiter: bytes) -> bytes:
    """The prefix that `key` is listed under: up to the first delimiter after `prefix`; empty for none."""
    at = key.find(delimiter, len(prefix)) if delimiter else -1
    return key[: at + len(delimiter)] if at >= 0 else b""


def after(marker: bytes, prefix: bytes, delimiter: bytes) -> bytes:
    """The first position after a marker, which may be a key or a prefix that an earlier page folded."""
    if not marker:
        return b""
    if _folded(marker, prefix, delimiter) == marker and marker.startswith(prefix):
        return successor(marker) or marker + b"\0"
    return marker + b"\0"


def successor(prefix: bytes) -> bytes | None:
    """The lowest position after everything that begins with `prefix`; None where nothing comes after."""
    kept = prefix.rstrip(b"\xff")
    return kept[:-1] + bytes([kept[-1] + 1]) if kept else None


def to_token(position: bytes) -> str:
    return base64.urlsafe_b64encode(b"1" + position).decode("ascii")


def from_token(token: str) -> bytes:
    """The position that `to_token` was given; WireError for a token that is none of ours."""
    try:
        decoded = base64.b64decode(token.encode("ascii"), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        decoded = b""
    if decoded[:1] != b"1":
        raise refusal("InvalidArgument", "The continuation token provided is incorrect")
    return decoded[1:]


def encoder(encoding: str | None) -> Callable[[str], str]:
    """How keys are written into an answer: as they are, or percent-encoded."""
    if encoding is None:
        return lambda text: text
    if encoding != "url":
        raise refusal("InvalidArgument", "Invalid Encoding Method specified in Request")
    return lambda text: quote(text, safe="/*")


def page_size(asked: int | None, name: str) -> int:
    """How many entries a page may have; WireError InvalidArgument for a negative number."""
    if asked is None:
        return PAGE
    if asked < 0:
        raise refusal("InvalidArgument", f"Argument {name} must be an integer between 0 and 2147483647")
    return min(asked, PAGE)
