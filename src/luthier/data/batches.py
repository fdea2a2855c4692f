"""Selects the rows of each step and collates micro-batches.

    order of an epoch     a permutation of the rows, drawn from (seed, epoch) alone
    micro-batch           the next `rows_per_batch` rows of it (grouped by length, where rows are padded)
    step                  the next `accumulation` micro-batches; the last step of an epoch may have fewer

The rows of a step are a function of (seed, step), so resuming needs no stored position. A packed micro-batch is one
sequence of concatenated rows; a padded one has one row per line, for architectures whose attention would cross packed
rows. Padded rows are grouped by similar length to reduce padding.

Shapes: R rows, T tokens (of the pack, or of the longest row), N positions that carry loss.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from luthier.data.tokens import TokenStore
from luthier.layers.batch import Batch, Source


@dataclass(frozen=True, slots=True)
class Layout:
    """How a micro-batch is laid out: packed or padded.

    `start_id` is the decoder's start token of an encoder-decoder. `widths`: minimum length of padded rows and of padded
    encoder inputs (0: the longest of them).
    """

    packed: bool
    pad_id: int
    start_id: int | None = None
    widths: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tokens:
    """Token ids, and the start of each row in the flattened ids."""

    ids_BT: Tensor
    mask_BT: Tensor | None
    position_ids_BT: Tensor
    lengths: tuple[int, ...]
    starts: np.ndarray


def collate(tokens: TokenStore, rows: list[int], layout: Layout) -> Batch:
    """Build the micro-batch of `rows`."""
    stored = [tokens.row(row) for row in rows]
    if layout.start_id is not None:
        return _collate_pairs(stored, rows, layout, layout.start_id)
    lines = _lay_out([ids for ids, _ in stored], layout, layout.widths[0])
    label_at = [np.flatnonzero(trained[1:]) + 1 for _, trained in stored]  # the first token has no context
    positions = np.concatenate([start + at - 1 for start, at in zip(lines.starts, label_at, strict=True)])
    labels = np.concatenate([ids[at] for (ids, _), at in zip(stored, label_at, strict=True)])
    counts = [len(at) for at in label_at]
    return _batch(lines, positions, labels, counts, rows, None)


def _collate_pairs(
    stored: list[tuple[np.ndarray, np.ndarray]], rows: list[int], layout: Layout, start_id: int
) -> Batch:
    """Build an encoder-decoder's micro-batch: prompts for the encoder, completions for the decoder."""
    cuts = [int(np.argmax(trained)) for _, trained in stored]
    sources = [ids[:cut] for (ids, _), cut in zip(stored, cuts, strict=True)]
    targets = [ids[cut:] for (ids, _), cut in zip(stored, cuts, strict=True)]
    encoder_input = _lay_out(sources, layout, layout.widths[0])
    lines = _lay_out([np.concatenate([[start_id], target[:-1]]) for target in targets], layout, layout.widths[1])
    positions = np.concatenate(
        [start + np.arange(len(target)) for start, target in zip(lines.starts, targets, strict=True)]
    )
    source = Source(encoder_input.ids_BT, encoder_input.mask_BT, encoder_input.lengths)
    return _batch(lines, positions, np.concatenate(targets), [len(target) for target in targets], rows, source)


def _batch(
    lines: _Tokens, positions: np.ndarray, labels: np.ndarray, counts: list[int], rows: list[int], source: Source | None
) -> Batch:
    return Batch(
        input_ids_BT=lines.ids_BT, position_ids_BT=lines.position_ids_BT, attention_mask_BT=lines.mask_BT,
        row_lengths=lines.lengths, positions_N=_long(positions), labels_N=_long(labels),
        row_of_label_N=_long(np.repeat(np.arange(len(rows)), counts)), rows=tuple(rows), source=source,
    )  # fmt: skip


def _long(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64))


def _lay_out(ids: list[np.ndarray], layout: Layout, width: int) -> _Tokens:
    lengths = tuple(len(row) for row in ids)
    if layout.packed:
        positions = np.concatenate([np.arange(length) for length in lengths])
        starts = np.cumsum([0, *lengths[:-1]])
        return _Tokens(
            ids_BT=_long(np.concatenate(ids))[None], mask_BT=None, position_ids_BT=_long(positions)[None],
            lengths=lengths, starts=starts,
        )  # fmt: skip
    width = max(width, *lengths)
    input_ids = np.full((len(ids), width), layout.pad_id, dtype=np.int64)
    mask = np.zeros((len(ids), width), dtype=np.int64)
    for line, row in enumerate(ids):
        input_ids[line, : len(row)] = row
        mask[line, : len(row)] = 1
    position_ids = np.tile(np.arange(width), (len(ids), 1))
    return _Tokens(
        ids_BT=_long(input_ids), mask_BT=_long(mask), position_ids_BT=_long(position_ids), lengths=lengths,
        starts=np.arange(len(ids)) * width,
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSampler:
    """Selects the rows of each optimizer step. `rows` are indices into the token store.

    `lengths` of the rows: group rows of similar length in a micro-batch (for padding). `drop_last`: skip the rows of an
    epoch, different ones each time, that do not fill a micro-batch. `work` of each row in any unit: balance it over the
    micro-batches of a step (for packing), so that ranks with one micro-batch each finish together.
    """

    rows: np.ndarray
    rows_per_batch: int
    accumulation: int
    seed: int
    lengths: np.ndarray | None = None
    drop_last: bool = False
    work: np.ndarray | None = None
    _orders: dict[int, np.ndarray] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self._rows_per_epoch / (self.rows_per_batch * self.accumulation))

    @property
    def _rows_per_epoch(self) -> int:
        return len(self.rows) - (len(self.rows) % self.rows_per_batch if self.drop_last else 0)

    def epoch_of(self, step: int) -> float:
        """Epochs completed after `step` steps."""
        return step / self.steps_per_epoch

    def micro_batches(self, step: int) -> list[list[int]]:
        """Return the micro-batches of a step (from 0) as lists of rows."""
        epoch, position = divmod(step, self.steps_per_epoch)
        size = self.rows_per_batch
        order = self._order(epoch)
        step_rows = order[position * size * self.accumulation : (position + 1) * size * self.accumulation]
        if self.work is not None:
            return [self.rows[part].tolist() for part in _balance(step_rows, self.work, size)]
        return [self.rows[step_rows[start : start + size]].tolist() for start in range(0, len(step_rows), size)]

    def _order(self, epoch: int) -> np.ndarray:
        """Return the rows of an epoch in the order of its micro-batches."""
        if epoch not in self._orders:
            self._orders.clear()  # only the current epoch is needed
            order = np.random.default_rng((self.seed, epoch)).permutation(len(self.rows))[: self._rows_per_epoch]
            if self.lengths is not None:
                order = _group_by_length(order, self.lengths, self.rows_per_batch, (self.seed, epoch, 1))
            self._orders[epoch] = order
        return self._orders[epoch]


_BATCHES_PER_SORT = 64


def _group_by_length(order: np.ndarray, lengths: np.ndarray, size: int, seed: tuple[int, ...]) -> np.ndarray:
    """Group rows of similar length into batches of `size`, and shuffle the batches.

    Only the rows of some batches are sorted together, so that the batches differ between epochs.
    """
    batches: list[np.ndarray] = []
    for start in range(0, len(order), size * _BATCHES_PER_SORT):
        part = order[start : start + size * _BATCHES_PER_SORT]
        part = part[np.argsort(lengths[part], kind="stable")]
        batches += [part[place : place + size] for place in range(0, len(part), size)]
    full = [batch for batch in batches if len(batch) == size]
    rest = [batch for batch in batches if len(batch) < size]  # at most one: the last of the epoch
    places = np.random.default_rng(seed).permutation(len(full))
    return np.concatenate([*(full[place] for place in places), *rest])


def _balance(rows: np.ndarray, work: np.ndarray, size: int) -> list[list[int]]:
    """Divide `rows` into parts of at most `size` rows, with about equal numbers of rows and work, each in row order.

    The largest remaining row goes to the part with the least work (longest processing time first, Graham 1969); then
    the parts with the most and the least work swap rows as long as that reduces their difference.
    """
    count = math.ceil(len(rows) / size)
    capacity = [len(rows) // count + (part < len(rows) % count) for part in range(count)]
    loads, parts = [0] * count, [list[int]() for _ in range(count)]
    for row in rows[np.argsort(-work[rows], kind="stable")].tolist():
        part = min((part for part in range(count) if len(parts[part]) < capacity[part]), key=loads.__getitem__)
        parts[part].append(row)
        loads[part] += int(work[row])
    while _swap_rows(parts, loads, work):
        pass
    order = {row: number for number, row in enumerate(rows.tolist())}
    return [sorted(part, key=order.__getitem__) for part in parts]


def _swap_rows(parts: list[list[int]], loads: list[int], work: np.ndarray) -> bool:
    """Swap the two rows that best equalize the parts with the most and the least work; False if no swap helps."""
    full, empty = loads.index(max(loads)), loads.index(min(loads))
    gap = loads[full] - loads[empty]
    moved = work[parts[full]][:, None] - work[parts[empty]][None, :]
    left = np.where((moved > 0) & (moved < gap), np.abs(gap - 2 * moved), gap)
    if not left.size or left.min() >= gap:
        return False
    one, other = np.unravel_index(left.argmin(), left.shape)
    parts[full][one], parts[empty][other] = parts[empty][other], parts[full][one]
    loads[full] -= int(moved[one, other])
    loads[empty] += int(moved[one, other])
    return True


def scoring_batches(tokens: TokenStore, rows: np.ndarray, rows_per_batch: int, layout: Layout) -> Iterator[Batch]:
    """Yield batches for scoring, longest rows first: peak memory comes first, and padding is minimal."""
    by_length = rows[np.argsort(-tokens.lengths[rows], kind="stable")]
    for start in range(0, len(by_length), rows_per_batch):
        yield collate(tokens, by_length[start : start + rows_per_batch].tolist(), layout)
