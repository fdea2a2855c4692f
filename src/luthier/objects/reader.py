"""Read an object in chunks; it stays complete even if it is replaced or deleted meanwhile."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence

from luthier.errors import LuthierError
from luthier.objects.blobs import CHUNK, Blobs
from luthier.objects.queries import Segment, StoredObject
from luthier.objects.ranges import ByteRange


class DamagedBlobError(LuthierError):
    """A file of the object store is missing or shorter than its row says: it was changed from outside."""


class SegmentReader:
    """The segments of a content as one file; `first` is the descriptor that holds the content's lock."""

    def __init__(self, blobs: Blobs, segments: Sequence[Segment], first: int) -> None:
        self._blobs, self._segments, self._first = blobs, segments, first
        self._starts = [segment.start for segment in segments]
        self._open = (0, first)

    def read(self, offset: int, size: int) -> bytes:
        """Between 1 and `size` bytes from `offset` on, which must be before the end."""
        index = bisect_right(self._starts, offset) - 1
        segment = self._segments[index]
        inside = offset - segment.start
        data = os.pread(self._file(index), min(size, segment.size - inside), inside)
        if not data:
            raise DamagedBlobError(f"{self._blobs.path(segment.blob)}: ends before byte {inside:,} of {segment.size:,}")
        return data

    def _file(self, index: int) -> int:
        if self._open[0] != index:
            file = self._first
            if index:
                path = self._blobs.path(self._segments[index].blob)
                try:
                    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                except FileNotFoundError:
                    raise DamagedBlobError(f"{path}: the file is missing") from None
            self._close_current()
            self._open = (index, file)
        return self._open[1]

    def _close_current(self) -> None:
        if self._open[1] != self._first:
            os.close(self._open[1])
            self._open = (0, self._first)

    def close(self) -> None:
        self._close_current()
        os.close(self._first)


def _do_nothing() -> None:
    pass


class ObjectReader:
    """An open object: an iterator over the chunks of its `range`, which closes itself at the end.

    `read(offset, size)` returns bytes, `release` closes the files. `on_closed` is called afterwards, but not by the
    garbage collector, which must not block.
    """

    def __init__(
        self, stored: StoredObject, read: Callable[[int, int], bytes], release: Callable[[], None] = _do_nothing,
        on_closed: Callable[[], None] = _do_nothing,
    ) -> None:  # fmt: skip
        self.object = stored
        self.range = ByteRange(0, stored.size)
        self._read, self._release, self._on_closed = read, release, on_closed
        self._position, self._closed = 0, False

    def select_range(self, range_: ByteRange) -> None:
        """Read only these bytes; must be called before the first chunk is read."""
        self.range, self._position = range_, range_.start

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self._closed or self._position >= self.range.end:
            self.close()
            raise StopIteration
        data = self._read(self._position, min(CHUNK, self.range.end - self._position))
        self._position += len(data)
        return data

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._release()
            self._on_closed()

    def __enter__(self) -> ObjectReader:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __del__(self) -> None:
        if not self._closed:  # a response that was never sent
            self._closed = True
            self._release()
