"""From rows to micro-batches: which rows go into which step, and the tensors of a micro-batch.

    order of an epoch     a permutation of the rows, drawn from (seed, epoch) alone
    micro-batch           the next `rows_per_batch` rows of it
    step                  the next `accumulation` micro-batches; the last one of an epoch may hold fewer

So a step's rows are a function of (seed, step): resuming needs no stored position. Packed micro-batches lay rows
side by side in one sequence; padded ones hold a row per line, for architectures that cannot keep packed rows apart.

Shapes: R rows, T tokens (of the pack, or of the longest row), N positions that carry loss.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from luthier.data.tokens import TokenStore
from luthier.layers.batch import Batch


def collate(tokens: TokenStore, rows: list[int], packed: bool, pad_id: int) -> Batch:
    """Build the micro-batch of `rows`."""
    ids, trained = zip(*(tokens.row(row) for row in rows), strict=True)
    lengths = tuple(len(row) for row in ids)
    width = 0 if packed else max(lengths)
    starts = np.cumsum([0, *lengths[:-1]]) if packed else np.arange(len(rows)) * width
    label_at = [np.flatnonzero(mask[1:]) + 1 for mask in trained]  # position 0 has no token before it
    positions = np.concatenate([start + at - 1 for start, at in zip(starts, label_at, strict=True)])
    labels = np.concatenate([row[at] for row, at in zip(ids, label_at, strict=True)])
    row_of_label = np.repeat(np.arange(len(rows)), [len(at) for at in label_at])
    if packed:
        input_ids, position_ids, mask = _packed(ids)
    else:
        input_ids, position_ids, mask = _padded(ids, width, pad_id)
    return Batch(
        input_ids, position_ids, mask, lengths, _long(positions), _long(labels), _long(row_of_label), tuple(rows)
    )


def _long(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64))


def _packed(ids: tuple[np.ndarray, ...]) -> tuple[Tensor, Tensor, None]:
    positions = np.concatenate([np.arange(len(row)) for row in ids])
    return _long(np.concatenate(ids))[None], _long(positions)[None], None


def _padded(ids: tuple[np.ndarray, ...], width: int, pad_id: int) -> tuple[Tensor, Tensor, Tensor]:
    input_ids = np.full((len(ids), width), pad_id, dtype=np.int64)
    mask = np.zeros((len(ids), width), dtype=np.int64)
    for line, row in enumerate(ids):
        input_ids[line, : len(row)] = row
        mask[line, : len(row)] = 1
    position_ids = np.tile(np.arange(width), (len(ids), 1))
    return _long(input_ids), _long(position_ids), _long(mask)


@dataclass(frozen=True, slots=True)
class Plan:
    """Which rows each optimizer step takes. `rows` are indices into the token store."""

    rows: np.ndarray
    rows_per_batch: int
    accumulation: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(len(self.rows) / (self.rows_per_batch * self.accumulation))

    def epoch_of(self, step: int) -> float:
        """Passes over the rows finished after `step` steps."""
        return step / self.steps_per_epoch

    def micro_batches(self, step: int) -> list[list[int]]:
        """The micro-batches, as lists of rows, of a step that counts from 0."""
        epoch, place = divmod(step, self.steps_per_epoch)
        size = self.rows_per_batch
        order = _order(len(self.rows), self.seed, epoch)
        window = self.rows[order[place * size * self.accumulation : (place + 1) * size * self.accumulation]]
        return [window[start : start + size].tolist() for start in range(0, len(window), size)]


@functools.lru_cache(maxsize=2)
def _order(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(count)


def in_order(tokens: TokenStore, rows: np.ndarray, rows_per_batch: int, packed: bool, pad_id: int) -> Iterator[Batch]:
    """Batches for scoring, longest rows first: memory peaks at once, and padding is least."""
    by_length = rows[np.argsort(-tokens.lengths[rows], kind="stable")]
    for start in range(0, len(by_length), rows_per_batch):
        yield collate(tokens, by_length[start : start + rows_per_batch].tolist(), packed, pad_id)
