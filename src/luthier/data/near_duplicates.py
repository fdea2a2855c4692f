"""Near-duplicate rows, found in one pass with bounded memory: MinHash signatures, banded, joined by union-find.

    text     case folded, each digit 0, each run of other non-letters one space
    shingles all 8-byte substrings of that text in UTF-8
    shared   shingles that all of the first SHARED_ROWS rows have (a system prompt, a template in a field): left out
    sketch   one-permutation MinHash: 64 bins, 16 bits of the smallest hash in each (128 bytes per row)
    groups   rows that share a band of 4 bins and agree in at least THRESHOLD of the 64 are joined

THRESHOLD is the estimated Jaccard similarity (standard error about 0.05 at 0.8). Texts under 8 bytes match when equal.
Shapes: R rows, N shingles of a batch, S shared shingles.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

THRESHOLD = 0.8
BINS = 64
_BAND = 4
_SHINGLE_BYTES = 8
_EMPTY = np.uint64(0xFFFFFFFFFFFFFFFF)
_NOT_WORDS = re.compile(r"[\W_]+")
_DIGITS = re.compile(r"\d")
_ASCII = bytes(
    ord("0") if chr(code).isdigit() else ord(chr(code).lower()) if chr(code).isalpha() else ord(" ")
    for code in range(128)
).ljust(256)
_SEPARATOR = b"\x00" * _SHINGLE_BYTES  # no shingle spans two rows
_ROWS = 256  # rows sketched at once, so that memory stays small
_CHUNK = 1 << 20  # rows compared at once
SHARED_ROWS, SHARED_BYTES = 2048, 1 << 22
"""What all of the first rows share is left out: of so many rows, or of rows with so much text together."""
MIN_SHARED_ROWS = 10
"""With fewer rows no shingle is left out: few rows that are alike share most of their words."""


def fold(text: str) -> bytes:
    """Normalize a text for comparison."""
    if text.isascii():  # same result by a table
        return b" ".join(text.encode("ascii").translate(_ASCII).split())
    return _NOT_WORDS.sub(" ", _DIGITS.sub("0", text.casefold())).strip().encode("utf-8", "replace")


class Sketches:
    """Collects signatures batch by batch; `groups` joins similar rows."""

    def __init__(self) -> None:
        self._parts: list[Array] = []
        self._first: list[bytes] = []  # the first rows, until it is known what they share
        self._first_bytes = 0
        self._shared: Array = np.empty(0, np.uint64)

    def add(self, texts: Sequence[str]) -> None:
        """Add a batch of texts."""
        folded = [fold(text) for text in texts]
        while folded and not self._parts:
            self._first.append(folded.pop(0))
            self._first_bytes += len(self._first[-1])
            is_large = self._first_bytes >= SHARED_BYTES and len(self._first) >= MIN_SHARED_ROWS
            if is_large or len(self._first) == SHARED_ROWS:
                self._sketch_first()
        if folded:
            self._parts.append(sketch(folded, self._shared))

    def _sketch_first(self) -> None:
        self._shared = shared_shingles(self._first) if len(self._first) >= MIN_SHARED_ROWS else self._shared
        self._parts = [sketch(self._first[start : start + _ROWS], self._shared)
                       for start in range(0, len(self._first), _ROWS)]  # fmt: skip
        self._first = []

    def groups(self) -> Array:
        """int64 (R,): the smallest row of each row's group; itself when it has no near-duplicate."""
        if self._first:
            self._sketch_first()
        signatures = np.concatenate(self._parts) if self._parts else np.empty((0, BINS), np.uint16)
        self._parts = [signatures]
        return _join_similar(signatures)


def shared_shingles(folded: Sequence[bytes]) -> Array:
    """Hashes (S,) of the shingles that every one of the texts has, ascending."""
    shared = np.unique(_shingle_hashes(folded[:1])[0])
    for text in folded[1:]:
        if not len(shared):
            break
        shared = np.intersect1d(shared, _shingle_hashes([text])[0])
    return shared


def sketch(folded: Sequence[bytes], shared: Array | None = None) -> Array:
    """uint16 (R, BINS) signatures of folded texts, without the `shared` shingles (S,), ascending hashes.

    Texts of which nothing is left have the same signature.
    """
    rows = len(folded)
    if not rows:
        return np.empty((0, BINS), np.uint16)
    hashes, row_of = _shingle_hashes(folded)
    if shared is not None and len(shared):
        own = shared[np.searchsorted(shared, hashes).clip(max=len(shared) - 1)] != hashes
        hashes, row_of = hashes[own], row_of[own]
    smallest = np.full(rows * BINS, _EMPTY)
    np.minimum.at(smallest, row_of * BINS + (hashes >> np.uint64(58)).astype(np.int64), hashes)
    return _fill_empty_bins(smallest.reshape(rows, BINS))


def _shingle_hashes(folded: Sequence[bytes]) -> tuple[Array, Array]:
    """Hashes uint64 (N,) of the shingles of texts, and the row of each (N,)."""
    padded = [text if len(text) >= _SHINGLE_BYTES else text.ljust(_SHINGLE_BYTES, b"\x01") for text in folded]
    joined = _SEPARATOR.join(padded) + _SEPARATOR
    lengths = np.array([len(text) for text in padded])
    starts = np.concatenate([[0], np.cumsum(lengths + _SHINGLE_BYTES)[:-1]])
    shingles = lengths - _SHINGLE_BYTES + 1
    # Shingle n of the batch starts at byte n plus the gaps between the rows before it.
    between = starts - np.concatenate([[0], np.cumsum(shingles)[:-1]])
    chosen = np.arange(shingles.sum()) + np.repeat(between, shingles)
    windows = np.ndarray(len(joined) - _SHINGLE_BYTES + 1, np.dtype("<u8"), joined, strides=(1,))  # at every byte
    hashes = _mix(windows[chosen].astype(np.uint64, copy=False))
    return hashes, np.repeat(np.arange(len(folded)), shingles)


def _mix(values: Array) -> Array:
    """SplitMix64's finaliser: a bijection of 64-bit numbers that looks random."""
    with np.errstate(over="ignore"):
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Array = values ^ (values >> np.uint64(31))
    return mixed


def _fill_empty_bins(smallest: Array) -> Array:
    """Set each empty bin to the next non-empty one on its right, offset by the distance (rotation)."""
    filled = smallest.copy()
    distance = np.zeros(smallest.shape, np.uint64)
    for _ in range(BINS - 1):
        empty = filled == _EMPTY
        if not empty.any():
            break
        neighbour, steps = np.roll(filled, -1, axis=1), np.roll(distance, -1, axis=1)
        filled = np.where(empty, neighbour, filled)
        distance = np.where(empty, steps + np.uint64(1), distance)
    return (_mix(filled ^ (distance << np.uint64(56))) & np.uint64(0xFFFF)).astype(np.uint16)


def _join_similar(signatures: Array) -> Array:
    rows = len(signatures)
    parent = np.arange(rows, dtype=np.int64)
    for start in range(0, BINS, _BAND):
        keys = np.ascontiguousarray(signatures[:, start : start + _BAND]).view(np.uint64).ravel()
        order = np.argsort(keys, kind="stable")
        ordered = keys[order]
        first = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]])) if rows else np.empty(0, np.int64)
        leader = order[np.repeat(first, np.diff(np.append(first, rows)))]
        same = np.flatnonzero(ordered[1:] == ordered[:-1])
        pairs = np.concatenate(
            [np.stack([order[same], order[same + 1]], 1), np.stack([leader[same + 1], order[same + 1]], 1)]
        )
        for chunk in range(0, len(pairs), _CHUNK):
            part = pairs[chunk : chunk + _CHUNK]
            part = part[parent[part[:, 0]] != parent[part[:, 1]]]
            alike = (signatures[part[:, 0]] == signatures[part[:, 1]]).sum(1) >= THRESHOLD * BINS
            _union(parent, part[alike])
    return _roots(parent)


def _union(parent: Array, pairs: Array) -> None:
    for left, right in pairs.tolist():
        low, high = sorted((_find(parent, left), _find(parent, right)))
        parent[high] = low


def _find(parent: Array, row: int) -> int:
    while parent[row] != row:
        parent[row] = parent[parent[row]]
        row = int(parent[row])
    return row


def _roots(parent: Array) -> Array:
    while True:
        above = parent[parent]
        if np.array_equal(above, parent):
            return parent
        parent = above
