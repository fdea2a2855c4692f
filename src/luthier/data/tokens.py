"""The token store: the ids of every row and which of them carry loss, on disk, memory-mapped.

    ids.bin       all rows' ids end to end, uint16 (vocabulary up to 65,536) or uint32
    offsets.npy   int64 (R+1,)  row i is ids[offsets[i]:offsets[i+1]]
    spans.npy     int32 (S, 2)  trained spans [start, end), in tokens from the row's start
    spanned.npy   int64 (R+1,)  row i has spans[spanned[i]:spanned[i+1]]
    turns.npy, turned.npy       the same for all turns of a conversation, where all are trained

Shapes: R rows, T tokens of a row, S spans.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
_ROWS_PER_WRITE = 512


def id_type(vocab_size: int) -> str:
    """Return the smallest numpy type that holds every id."""
    return "uint16" if vocab_size <= 1 << 16 else "uint32"


class SpanWriter:
    """Collects spans of rows and writes them as two arrays."""

    def __init__(self) -> None:
        self._ends = array("q", [0])
        self._spans = array("i")

    def append(self, spans: Sequence[tuple[int, int]]) -> None:
        for start, end in spans:
            self._spans.extend((start, end))
        self._ends.append(len(self._spans) // 2)

    def save(self, spans: Path, ends: Path) -> None:
        np.save(ends, np.array(self._ends, dtype=np.int64))
        np.save(spans, np.array(self._spans, dtype=np.int32).reshape(-1, 2))


class TokenWriter:
    """Appends rows to a store; memory grows by a few bytes per row. `turns`: also store the spans of all turns."""

    def __init__(self, folder: Path, vocab_size: int, turns: bool = False) -> None:
        self.folder = folder
        self._type = np.dtype(id_type(vocab_size))
        self._ids = open(folder / "ids.bin", "wb")  # noqa: SIM115 (closed by `close`)
        self._buffer: list[Array] = []
        self._offsets = array("q", [0])
        self._spans = SpanWriter()
        self._turns = SpanWriter() if turns else None

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def append(self, ids: Array, spans: Sequence[tuple[int, int]], turns: Sequence[tuple[int, int]] = ()) -> int:
        """Store one row; return its index."""
        self._buffer.append(ids)
        if len(self._buffer) >= _ROWS_PER_WRITE:
            self._write()
        self._offsets.append(self._offsets[-1] + len(ids))
        self._spans.append(spans)
        if self._turns:
            self._turns.append(turns)
        return len(self) - 1

    def close(self) -> None:
        """Write the buffered rows and the index files, which completes the store."""
        self._write()
        self._ids.close()
        np.save(self.folder / "offsets.npy", np.array(self._offsets, dtype=np.int64))
        self._spans.save(self.folder / "spans.npy", self.folder / "spanned.npy")
        if self._turns:
            self._turns.save(self.folder / "turns.npy", self.folder / "turned.npy")

    def _write(self) -> None:
        if self._buffer:
            self._ids.write(np.concatenate(self._buffer, dtype=self._type, casting="unsafe").data)
            self._buffer.clear()


class TokenStore:
    """Reads a written store. `completion_only` False: every token but a row's first carries loss or, with `turns`, all
    turns of a conversation do.
    """

    def __init__(self, folder: Path, vocab_size: int, completion_only: bool = True, turns: bool = False) -> None:
        self.folder = folder
        self.completion_only = completion_only
        self._trains_all = not (completion_only or turns)
        self.offsets: Array = np.load(folder / "offsets.npy")
        self._spanned: Array = np.load(folder / ("turned.npy" if turns else "spanned.npy"))
        self._spans: Array = np.load(folder / ("turns.npy" if turns else "spans.npy"))
        self._type = np.dtype(id_type(vocab_size))
        empty = int(self.offsets[-1]) == 0  # an empty file cannot be mapped
        self._ids: Array = np.empty(0, self._type) if empty else np.memmap(folder / "ids.bin", self._type, "r")
        self.lengths: Array = np.diff(self.offsets)
        self.trained_counts: Array = self._count_trained()

    def __len__(self) -> int:
        return len(self.lengths)

    def row(self, index: int) -> tuple[Array, Array]:
        """Return ids int64 (T,), and bool (T,): whether a token carries loss as a label; the first never does."""
        ids = self._ids[self.offsets[index] : self.offsets[index + 1]].astype(np.int64)
        trained = np.full(len(ids), self._trains_all)
        for start, end in self._spans[self._spanned[index] : self._spanned[index + 1]]:
            trained[start:end] = True
        trained[:1] = False
        return ids, trained

    def _count_trained(self) -> Array:
        if self._trains_all:
            every: Array = np.maximum(self.lengths - 1, 0)
            return every
        # The first token of a row has no context, so a span from 0 trains one token less.
        sizes = (self._spans[:, 1] - np.maximum(self._spans[:, 0], 1)).astype(np.int64)
        sums = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.maximum(sizes, 0))])
        counts: Array = sums[self._spanned[1:]] - sums[self._spanned[:-1]]
        return counts
