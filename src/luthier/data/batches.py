"""From rows to micro-batches: which rows go into which step, and the tensors of a micro-batch.

    order of an epoch     a permutation of the rows, drawn from (seed, epoch) alone
    micro-batch           the next `rows_per_batch` rows of it (put side by side by length, where rows are padded)
    step                  the next `accumulation` micro-batches; the last one of an epoch may hold fewer

So a step's rows are a function of (seed, step): resuming needs no stored position. Packed micro-batches lay rows
side by side in one sequence; padded ones hold a row per line, for architectures that cannot keep packed rows apart.
Those are given the rows' lengths and put rows of like length together, so that little is padding.

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
    """How rows lie in a micro-batch.

    `start_id` is the token a decoder starts with, for an encoder-decoder. `widths`: tokens that padded rows and
    padded sources are at least filled up to (0: the longest of them).
    """

    packed: bool
    pad_id: int
    start_id: int | None = None
    widths: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True)
class _Lines:
    """Token ids as lines, and where in the flattened lines each row starts."""

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
    lines = _lines([ids for ids, _ in stored], layout, layout.widths[0])
    label_at = [np.flatnonzero(trained[1:]) + 1 for _, trained in stored]  # position 0 has no token before it
    positions = np.concatenate([start + at - 1 for start, at in zip(lines.starts, label_at, strict=True)])
    labels = np.concatenate([ids[at] for (ids, _), at in zip(stored, label_at, strict=True)])
    counts = [len(at) for at in label_at]
    return _batch(lines, positions, labels, counts, rows, None)


def _collate_pairs(
    stored: list[tuple[np.ndarray, np.ndarray]], rows: list[int], layout: Layout, start_id: int
) -> Batch:
    """Of each row, the encoder gets what comes before the completion, the decoder learns the completion."""
    cuts = [int(np.argmax(trained)) for _, trained in stored]
    sources = [ids[:cut] for (ids, _), cut in zip(stored, cuts, strict=True)]
    targets = [ids[cut:] for (ids, _), cut in zip(stored, cuts, strict=True)]
    read = _lines(sources, layout, layout.widths[0])
    lines = _lines([np.concatenate([[start_id], target[:-1]]) for target in targets], layout, layout.widths[1])
    positions = np.concatenate(
        [start + np.arange(len(target)) for start, target in zip(lines.starts, targets, strict=True)]
    )
    source = Source(read.ids_BT, read.mask_BT, read.lengths)
    return _batch(lines, positions, np.concatenate(targets), [len(target) for target in targets], rows, source)


def _batch(
    lines: _Lines, positions: np.ndarray, labels: np.ndarray, counts: list[int], rows: list[int], source: Source | None
) -> Batch:
    return Batch(
        input_ids_BT=lines.ids_BT, position_ids_BT=lines.position_ids_BT, attention_mask_BT=lines.mask_BT,
        row_lengths=lines.lengths, positions_N=_long(positions), labels_N=_long(labels),
        row_of_label_N=_long(np.repeat(np.arange(len(rows)), counts)), rows=tuple(rows), source=source,
    )  # fmt: skip


def _long(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64))


def _lines(ids: list[np.ndarray], layout: Layout, width: int) -> _Lines:
    lengths = tuple(len(row) for row in ids)
    if layout.packed:
        positions = np.concatenate([np.arange(length) for length in lengths])
        starts = np.cumsum([0, *lengths[:-1]])
        return _Lines(_long(np.concatenate(ids))[None], None, _long(positions)[None], lengths, starts)
    width = max(width, *lengths)
    input_ids = np.full((len(ids), width), layout.pad_id, dtype=np.int64)
    mask = np.zeros((len(ids), width), dtype=np.int64)
    for line, row in enumerate(ids):
        input_ids[line, : len(row)] = row
        mask[line, : len(row)] = 1
    position_ids = np.tile(np.arange(width), (len(ids), 1))
    return _Lines(_long(input_ids), _long(mask), _long(position_ids), lengths, np.arange(len(ids)) * width)


@dataclass(frozen=True, slots=True)
class BatchSampler:
    """Which rows each optimizer step takes. `rows` are indices into the token store.

    `lengths` of those rows, where they will be padded: then a micro-batch holds rows of like length. `drop_last`:
    an epoch leaves out the rows, others each time, that do not fill a micro-batch. `work` that each of those rows is,
    in any unit, where they will be packed: then the micro-batches of a step are about as much of it, so that ranks that
    take one each end together.
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
        """Passes over the rows finished after `step` steps."""
        return step / self.steps_per_epoch

    def micro_batches(self, step: int) -> list[list[int]]:
        """The micro-batches, as lists of rows, of a step that counts from 0."""
        epoch, place = divmod(step, self.steps_per_epoch)
        size = self.rows_per_batch
        order = self._order(epoch)
        window = order[place * size * self.accumulation : (place + 1) * size * self.accumulation]
        if self.work is not None:
            return [self.rows[part].tolist() for part in _balanced(window, self.work, size)]
        return [self.rows[window[start : start + size]].tolist() for start in range(0, len(window), size)]

    def _order(self, epoch: int) -> np.ndarray:
        """The rows of an epoch in the order in which they are cut into micro-batches."""
        if epoch not in self._orders:
            self._orders.clear()  # one epoch is in hand at a time
            order = np.random.default_rng((self.seed, epoch)).permutation(len(self.rows))[: self._rows_per_epoch]
            if self.lengths is not None:
                order = _grouped(order, self.lengths, self.rows_per_batch, (self.seed, epoch, 1))
            self._orders[epoch] = order
        return self._orders[epoch]


_BATCHES_SORTED_TOGETHER = 64


def _grouped(order: np.ndarray, lengths: np.ndarray, size: int, seed: tuple[int, ...]) -> np.ndarray:
    """`order` with rows of like length side by side, `size` at a time; which of those come when stays random.

    Only the rows of some micro-batches are sorted together, so that an epoch's batches differ from the last one's.
    """
    batches: list[np.ndarray] = []
    for start in range(0, len(order), size * _BATCHES_SORTED_TOGETHER):
        part = order[start : start + size * _BATCHES_SORTED_TOGETHER]
        part = part[np.argsort(lengths[part], kind="stable")]
        batches += [part[place : place + size] for place in range(0, len(part), size)]
    full = [batch for batch in batches if len(batch) == size]
    rest = [batch for batch in batches if len(batch) < size]  # at most one: it closes the epoch
    places = np.random.default_rng(seed).permutation(len(full))
    return np.concatenate([*(full[place] for place in places), *rest])


def _balanced(window: np.ndarray, work: np.ndarray, most: int) -> list[list[int]]:
    """`window` in parts of `most` at most and of about the same number of rows and work; each part in its order.

    The largest row that is left goes where there is least (Graham 1969, longest processing time first); then rows of
    the fullest and the emptiest part change places as long as that brings the two together.
    """
    count = math.ceil(len(window) / most)
    room = [len(window) // count + (part < len(window) % count) for part in range(count)]
    held, parts = [0] * count, [list[int]() for _ in range(count)]
    for place in window[np.argsort(-work[window], kind="stable")].tolist():
        part = min((part for part in range(count) if len(parts[part]) < room[part]), key=held.__getitem__)
        parts[part].append(place)
        held[part] += int(work[place])
    while _exchanged(parts, held, work):
        pass
    before = {place: number for number, place in enumerate(window.tolist())}
    return [sorted(part, key=before.__getitem__) for part in parts]


def _exchanged(parts: list[list[int]], held: list[int], work: np.ndarray) -> bool:
    """Let the fullest part and the emptiest exchange the two rows that bring them closest; False where none do."""
    full, empty = held.index(max(held)), held.index(min(held))
    gap = held[full] - held[empty]
    moved = work[parts[full]][:, None] - work[parts[empty]][None, :]
    left = np.where((moved > 0) & (moved < gap), np.abs(gap - 2 * moved), gap)
    if not left.size or left.min() >= gap:
        return False
    one, other = np.unravel_index(left.argmin(), left.shape)
    parts[full][one], parts[empty][other] = parts[empty][other], parts[full][one]
    held[full] -= int(moved[one, other])
    held[empty] += int(moved[one, other])
    return True


def scoring_batches(tokens: TokenStore, rows: np.ndarray, rows_per_batch: int, layout: Layout) -> Iterator[Batch]:
    """Batches for scoring, longest rows first: memory peaks at once, and padding is least."""
    by_length = rows[np.argsort(-tokens.lengths[rows], kind="stable")]
    for start in range(0, len(by_length), rows_per_batch):
        yield collate(tokens, by_length[start : start + rows_per_batch].tolist(), layout)
