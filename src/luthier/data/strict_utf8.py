"""Reads lines of a UTF-8 file strictly; only \\n ends a line, so U+2028 and the like stay inside a line."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_GZIP = b"\x1f\x8b"
_BOMS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


class NotUtf8Error(ValueError):
    """Bytes that are not UTF-8, with their line."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line


class Utf8Lines:
    """Iterates (line number from 1, text with its line end). Raises NotUtf8Error at the first bad line.

    `number` is the last line returned, for readers that join lines (CSV). A byte-order mark is dropped. A file that
    gzip compressed is read decompressed, whatever its name.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.number = 0

    def __iter__(self) -> Iterator[tuple[int, str]]:
        for text in self.texts():
            yield self.number, text

    def texts(self) -> Iterator[str]:
        """The lines without their numbers."""
        with open(self._path, "rb", buffering=1 << 20) as handle:
            for number, line in enumerate(_lines(handle, is_compressed(self._path)), 1):
                self.number = number
                if number == 1:
                    if line[:2] in _BOMS:
                        raise NotUtf8Error(0, f"not UTF-8 but {_BOMS[line[:2]]}; save the file as UTF-8")
                    line = line.removeprefix(b"\xef\xbb\xbf")
                    if not line:
                        continue
                try:
                    yield line.decode("utf-8")
                except UnicodeDecodeError as error:
                    bad = line[error.start]
                    message = f"not UTF-8: 0x{bad:02x} at byte {error.start + 1} of the line; save the file as UTF-8"
                    raise NotUtf8Error(number, message) from None


def is_compressed(path: Path) -> bool:
    """Whether the file starts with gzip's magic bytes."""
    with open(path, "rb") as handle:
        return handle.read(2) == _GZIP


def _lines(handle: BinaryIO, is_compressed: bool) -> Iterator[bytes]:
    if not is_compressed:
        yield from handle
        return
    number = 0
    try:
        with gzip.GzipFile(fileobj=handle) as file:
            for line in file:
                number += 1
                yield line
    except (EOFError, gzip.BadGzipFile, zlib.error):
        raise NotUtf8Error(number + 1, "the compressed file ends early or is damaged; copy it again") from None
