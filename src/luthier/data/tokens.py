"""The token store: every row's ids and which of them carry loss, on disk and memory-mapped.

    ids.bin       all rows' ids end to end, uint16 (vocabulary up to 65,536) or uint32
    offsets.npy   int64 (R+1,)  row i is ids[offsets[i]:offsets[i+1]]
    spans.npy     int32 (S, 2)  trained stretches [start, end), in tokens from the row's start
    spanned.npy   int64 (R+1,)  row i has spans[spanned[i]:spanned[i+1]]

It knows numbers, nothing of text. Shapes: R rows, T tokens of a row, S spans.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


def id_type(vocab_size: int) -> str:
    """The smallest numpy type name that holds every id."""
    return "uint16" if vocab_size <= 1 << 16 else "uint32"


class TokenWriter:
    """Appends rows to a store; memory grows by a few bytes a row."""

    def __init__(self, folder: Path, vocab_size: int) -> None:
        self.folder = folder
        self._type = np.dtype(id_type(vocab_size))
        self._ids = open(folder / "ids.bin", "wb")  # noqa: SIM115 (closed by `close`)
        self._offsets = array("q", [0])
        self._spanned = array("q", [0])
        self._spans = array("i")

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def append(self, ids: Array, spans: Sequence[tuple[int, int]]) -> int:
        """Store one row; return its index."""
        self._ids.write(np.ascontiguousarray(ids, dtype=self._type).data)
        self._offsets.append(self._offsets[-1] + len(ids))
        for start, end in spans:
            self._spans.extend((start, end))
        self._spanned.append(len(self._spans) // 2)
        return len(self) - 1

    def close(self) -> None:
        """Write the index files; the folder is a complete store afterwards."""
        self._ids.close()
        np.save(self.folder / "offsets.npy", np.array(self._offsets, dtype=np.int64))
        np.save(self.folder / "spanned.npy", np.array(self._spanned, dtype=np.int64))
        np.save(self.folder / "spans.npy", np.array(self._spans, dtype=np.int32).reshape(-1, 2))


class TokenStore:
    """Rows of a written store. `completion_only` False: every token but a row's first carries loss."""

    def __init__(self, folder: Path, vocab_size: int, completion_only: bool = True) -> None:
        self.folder = folder
        self.completion_only = completion_only
        self.offsets: Array = np.load(folder / "offsets.npy")
        self._spanned: Array = np.load(folder / "spanned.npy")
        self._spans: Array = np.load(folder / "spans.npy")
        self._type = np.dtype(id_type(vocab_size))
        empty = int(self.offsets[-1]) == 0  # an empty file cannot be mapped
        self._ids: Array = np.empty(0, self._type) if empty else np.memmap(folder / "ids.bin", self._type, "r")
        self.lengths: Array = np.diff(self.offsets)
        self.trained_counts: Array = self._count_trained()

    def __len__(self) -> int:
        return len(self.lengths)

    def row(self, index: int) -> tuple[Array, Array]:
        """ids int64 (T,) and trained bool (T,): token t carries loss as a label. The first token never does."""
        ids = self._ids[self.offsets[index] : self.offsets[index + 1]].astype(np.int64)
        trained = np.full(len(ids), not self.completion_only)
        for start, end in self._spans[self._spanned[index] : self._spanned[index + 1]]:
            trained[start:end] = True
        trained[:1] = False
        return ids, trained

    def _count_trained(self) -> Array:
        if not self.completion_only:
            every: Array = np.maximum(self.lengths - 1, 0)
            return every
        # A span that starts at 0 trains one token less: nothing predicts a row's first token.
        sizes = (self._spans[:, 1] - np.maximum(self._spans[:, 0], 1)).astype(np.int64)
        sums = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.maximum(sizes, 0))])
        counts: Array = sums[self._spanned[1:]] - sums[self._spanned[:-1]]
        return counts
