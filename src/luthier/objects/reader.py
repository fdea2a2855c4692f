"""An object that is open for reading: whole even while it is replaced or deleted, and never in memory at once."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence

from luthier.errors import LuthierError
from luthier.objects.blobs import CHUNK, Blobs
from luthier.objects.queries import Object, Segment
from luthier.objects.ranges import Span


class DamagedError(LuthierError):
    """A file of the object store is shorter than its row says: somebody else changed it."""


class Files:
    """The segments of one content, behind one offset; `first` is the descriptor that holds the content's lock."""

    def __init__(self, blobs: Blobs, segments: Sequence[Segment], first: int) -> None:
        self._blobs, self._segments, self._first = blobs, segments, first
        self._starts = [segment.start for segment in segments]
        self._open = (0, first)

    def read(self, offset: int, size: int) -> bytes:
        """At least one and at most `size` bytes from `offset` on, which is before the end."""
        index = bisect_right(self._starts, offset) - 1
        segment = self._segments[index]
        inside = offset - segment.start
        data = os.pread(self._file(index), min(size, segment.size - inside), inside)
        if not data:
            raise DamagedError(f"{self._blobs.path(segment.blob)}: ends before byte {inside:,} of {segment.size:,}")
        return data

    def _file(self, index: int) -> int:
        if self._open[0] != index:
            file = self._first
            if index:
                file = os.open(self._blobs.path(self._segments[index].blob), os.O_RDONLY | os.O_CLOEXEC)
            self._leave()
            self._open = (index, file)
        return self._open[1]

    def _leave(self) -> None:
        if self._open[1] != self._first:
            os.close(self._open[1])
            self._open = (0, self._first)

    def close(self) -> None:
        self._leave()
        os.close(self._first)


def _nothing() -> None:
    pass


class Stream:
    """An open object, an iterator over the bytes of its `span`; closes itself at the end, `close` does it earlier.

    `read(offset, size)` gives its bytes, `release` lets go of them, `left` is called after that, but not by the garbage
    collector, in whose calls nothing can be waited for.
    """

    def __init__(
        self, of: Object, read: Callable[[int, int], bytes], release: Callable[[], None] = _nothing,
        left: Callable[[], None] = _nothing,
    ) -> None:  # fmt: skip
        self.object = of
        self.span = Span(0, of.size)
        self._read, self._release, self._left = read, release, left
        self._position, self._closed = 0, False

    def narrow(self, span: Span) -> None:
        """Give only these bytes; before the first is read."""
        self.span, self._position = span, span.start

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self._closed or self._position >= self.span.end:
            self.close()
            raise StopIteration
        data = self._read(self._position, min(CHUNK, self.span.end - self._position))
        self._position += len(data)
        return data

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._release()
            self._left()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __del__(self) -> None:
        if not self._closed:  # an answer that was never sent
            self._closed = True
            self._release()
