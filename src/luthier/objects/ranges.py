"""Parse the byte ranges of requests."""

from __future__ import annotations

import re
from dataclasses import dataclass

from luthier.objects.errors import s3_error

_SINGLE_RANGE = re.compile(r"bytes=(\d{0,19})-(\d{0,19})")


@dataclass(frozen=True, slots=True)
class ByteRange:
    """Bytes `start` to `end` of an object, `end` excluded."""

    start: int
    end: int

    @property
    def size(self) -> int:
        return self.end - self.start

    def header(self, total: int) -> str:
        """Content-Range."""
        return f"bytes {self.start}-{self.end - 1}/{total}"


def parse_range(header: str | None, size: int) -> ByteRange | None:
    """The range of a Range header; None for none and for one that S3 ignores (malformed, several ranges).

    WireError InvalidRange if no byte of it exists.
    """
    match = _SINGLE_RANGE.fullmatch(header.replace(" ", "")) if header else None
    if not match or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if not first:
        start, end = max(0, size - int(last)), size
    else:
        start, end = int(first), min(int(last) + 1, size) if last else size
        if last and int(last) < start:
            return None
    if start >= size:
        raise s3_error("InvalidRange")
    return ByteRange(start, end)


def parse_copy_range(header: str, size: int) -> ByteRange:
    """The range of x-amz-copy-source-range; WireError if it is incomplete or exceeds the object."""
    match = _SINGLE_RANGE.fullmatch(header)
    if not match or "" in match.groups():
        raise s3_error("InvalidArgument", "The x-amz-copy-source-range value must be of the form bytes=first-last")
    start, end = int(match[1]), int(match[2]) + 1
    if start >= end or end > size:
        raise s3_error("InvalidRequest", f"Range specified is not valid for source object of size: {size}")
    return ByteRange(start, end)
