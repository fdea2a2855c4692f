"""Near-duplicate rows, found in one pass with bounded memory: MinHash signatures, banded, joined by union-find.

    text     case folded, each digit 0, each run of other non-letters one space
    shingles all 8-byte substrings of that text in UTF-8
    sketch   one-permutation MinHash: 64 bins, 16 bits of the smallest hash in each (128 bytes per row)
    groups   rows that share a band of 4 bins and agree in at least THRESHOLD of the 64 are joined

THRESHOLD is the estimated Jaccard similarity (standard error about 0.05 at 0.8). Texts under 8 bytes match when equal.
Shapes: R rows, N shingles of a batch.
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
_CHUNK = 1 << 20  # rows compared at once


def fold(text: str) -> bytes:
    """Normalize a text for comparison."""
    if text.isascii():  # same result by a table
        return b" ".join(text.encode("ascii").translate(_ASCII).split())
    return _NOT_WORDS.sub(" ", _DIGITS.sub("0", text.casefold())).strip().encode("utf-8", "replace")


class Sketches:
    """Collects signatures batch by batch; `groups` joins similar rows."""

    def __init__(self) -> None:
        self._parts: list[Array] = []

    def add(self, texts: Sequence[str]) -> None:
        """Add a batch of texts."""
        self._parts.append(sketch([fold(text) for text in texts]))

    def groups(self) -> Array:
        """int64 (R,): the smallest row of each row's group; itself when it has no near-duplicate."""
        signatures = np.concatenate(self._parts) if self._parts else np.empty((0, BINS), np.uint16)
        self._parts = [signatures]
        return _join_similar(signatures)


def sketch(folded: Sequence[bytes]) -> Array:
    """uint16 (R, BINS) signatures of folded texts."""
    rows = len(folded)
    if not rows:
        return np.empty((0, BINS), np.uint16)
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
    row_of = np.repeat(np.arange(rows), shingles)
    smallest = np.full(rows * BINS, _EMPTY)
    np.minimum.at(smallest, row_of * BINS + (hashes >> np.uint64(58)).astype(np.int64), hashes)
    return _fill_empty_bins(smallest.reshape(rows, BINS))


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
