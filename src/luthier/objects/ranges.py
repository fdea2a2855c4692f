"""Which bytes of an object a request asks for."""

from __future__ import annotations

import re
from dataclasses import dataclass

from luthier.objects.errors import refusal

_ONE = re.compile(r"bytes=(\d{0,19})-(\d{0,19})")


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes `start` to `end` of an object, the end not included."""

    start: int
    end: int

    @property
    def size(self) -> int:
        return self.end - self.start

    def header(self, total: int) -> str:
        """Content-Range."""
        return f"bytes {self.start}-{self.end - 1}/{total}"


def parse_range(header: str | None, size: int) -> Span | None:
    """The span of a Range header; None where there is none or S3 ignores it (malformed, several ranges).

    WireError InvalidRange when no byte of it exists.
    """
    found = _ONE.fullmatch(header.replace(" ", "")) if header else None
    if not found or found.groups() == ("", ""):
        return None
    first, last = found.groups()
    if not first:
        start, end = max(0, size - int(last)), size
    else:
        start, end = int(first), min(int(last) + 1, size) if last else size
        if last and int(last) < start:
            return None
    if start >= size:
        raise refusal("InvalidRange")
    return Span(start, end)


def parse_copy_range(header: str, size: int) -> Span:
    """The span of x-amz-copy-source-range, which has to be whole and inside the object; WireError else."""
    found = _ONE.fullmatch(header)
    if not found or "" in found.groups():
        raise refusal("InvalidArgument", "The x-amz-copy-source-range value must be of the form bytes=first-last")
    start, end = int(found[1]), int(found[2]) + 1
    if start >= end or end > size:
        raise refusal("InvalidRequest", f"Range specified is not valid for source object of size: {size}")
    return Span(start, end)
