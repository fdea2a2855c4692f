"""Which rows go into which step, and the tensors of a micro-batch."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from token_rows import write_store

from luthier.data.batches import BatchSampler, Layout, collate, scoring_batches
from luthier.layers.batch import Batch

PAD = 3
LENGTHS = st.lists(st.integers(2, 30), min_size=1, max_size=20)


def sampler(
    rows: np.ndarray,
    rows_per_batch: int,
    accumulation: int,
    seed: int,
    lengths: np.ndarray | None = None,
    **options: Any,
) -> BatchSampler:
    return BatchSampler(
        rows=rows, rows_per_batch=rows_per_batch, accumulation=accumulation, seed=seed, lengths=lengths, **options
    )


@st.composite
def plans(draw: st.DrawFn) -> BatchSampler:
    rows = draw(st.lists(st.integers(0, 999), min_size=1, max_size=60, unique=True))
    return sampler(np.array(rows), draw(st.integers(1, 9)), draw(st.integers(1, 4)), draw(st.integers(0, 99)))


def epoch_of(plan: BatchSampler, epoch: int) -> list[list[list[int]]]:
    first = epoch * plan.steps_per_epoch
    return [plan.micro_batches(first + step) for step in range(plan.steps_per_epoch)]


@given(plans(), st.integers(0, 3))
def test_an_epoch_takes_each_row_once(plan: BatchSampler, epoch: int) -> None:
    steps = epoch_of(plan, epoch)
    taken = [row for step in steps for batch in step for row in batch]
    assert sorted(taken) == sorted(plan.rows.tolist())
    window = plan.rows_per_batch * plan.accumulation
    assert [sum(map(len, step)) for step in steps[:-1]] == [window] * (len(steps) - 1)
    assert 0 < sum(map(len, steps[-1])) <= window
    for step in steps:
        assert [len(batch) for batch in step[:-1]] == [plan.rows_per_batch] * (len(step) - 1)
        assert 0 < len(step[-1]) <= plan.rows_per_batch
        assert len(step) <= plan.accumulation


@given(plans(), st.integers(0, 200))
def test_a_step_is_a_function_of_seed_and_step(plan: BatchSampler, step: int) -> None:
    again = sampler(plan.rows.copy(), plan.rows_per_batch, plan.accumulation, plan.seed)
    again.micro_batches(0)  # what was asked before makes no difference
    assert plan.micro_batches(step) == again.micro_batches(step)


def test_epochs_and_seeds_give_other_orders() -> None:
    plan = sampler(np.arange(50), 5, 2, 1)
    assert epoch_of(plan, 0) != epoch_of(plan, 1)
    assert epoch_of(plan, 0) != epoch_of(sampler(np.arange(50), 5, 2, 2), 0)
    assert epoch_of(plan, 0) != [
        [list(range(10 * step, 10 * step + 5)), list(range(10 * step + 5, 10 * step + 10))] for step in range(5)
    ]


def test_the_last_window_is_partial() -> None:
    plan = sampler(np.arange(100, 111), rows_per_batch=2, accumulation=3, seed=0)
    assert plan.steps_per_epoch == 2
    assert [[len(batch) for batch in step] for step in epoch_of(plan, 0)] == [[2, 2, 2], [2, 2, 1]]
    assert plan.epoch_of(3) == 1.5


@pytest.mark.parametrize("lengths", [None, np.arange(11)])
def test_what_does_not_fill_a_micro_batch_is_left_out(lengths: np.ndarray | None) -> None:
    plan = sampler(np.arange(100, 111), 2, 3, seed=0, lengths=lengths, drop_last=True)
    assert plan.steps_per_epoch == 2
    assert [[len(batch) for batch in step] for step in epoch_of(plan, 0)] == [[2, 2, 2], [2, 2]]
    left_out = set()
    for epoch in range(12):
        seen = {row for step in epoch_of(plan, epoch) for batch in step for row in batch}
        assert len(seen) == 10
        left_out |= set(range(100, 111)) - seen
    assert len(left_out) > 4  # another one each time, whatever its length
    whole = sampler(np.arange(10), 2, 3, seed=0, lengths=None, drop_last=True)
    assert epoch_of(whole, 1) == epoch_of(sampler(np.arange(10), 2, 3, seed=0), 1)


def check_labels(batch: Batch, ids: list[np.ndarray], trained: list[np.ndarray]) -> None:
    """Each label is the token after its position, in its own row, and all trained tokens are labels once."""
    flat = batch.input_ids_BT.flatten()
    rows = enumerate(zip(ids, trained, strict=True))
    expected = [(row, int(token)) for row, (one, mask) in rows for token in one[mask]]
    assert list(zip(batch.row_of_label_N.tolist(), batch.labels_N.tolist(), strict=True)) == expected
    assert flat[batch.positions_N + 1].tolist() == batch.labels_N.tolist()
    assert batch.completion_tokens == sum(int(mask.sum()) for mask in trained)
    assert batch.tokens == sum(map(len, ids))


@settings(max_examples=30, deadline=None)
@given(LENGTHS, st.booleans(), st.integers(0, 9))
def test_a_micro_batch_holds_its_rows(lengths: list[int], completion_only: bool, seed: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = write_store(Path(folder), lengths, seed, completion_only)
        rows = np.random.default_rng(seed).permutation(len(lengths)).tolist()
        ids, trained = (list(column) for column in zip(*(store.row(row) for row in rows), strict=True))
        packed, padded = collate(store, rows, Layout(True, PAD)), collate(store, rows, Layout(False, PAD))
    own = tuple(map(len, ids))
    assert packed.rows == padded.rows == tuple(rows)
    assert packed.row_lengths == padded.row_lengths == own
    check_labels(packed, ids, trained)
    check_labels(padded, ids, trained)

    assert packed.attention_mask_BT is None
    assert packed.input_ids_BT.tolist() == [np.concatenate(ids).tolist()]
    assert packed.position_ids_BT.tolist() == [[place for length in own for place in range(length)]]

    assert padded.attention_mask_BT is not None
    assert padded.input_ids_BT.shape == padded.position_ids_BT.shape == (len(rows), max(own))
    for line, one in enumerate(ids):
        assert padded.input_ids_BT[line].tolist() == one.tolist() + [PAD] * (max(own) - len(one))
        assert padded.attention_mask_BT[line].tolist() == [1] * len(one) + [0] * (max(own) - len(one))
        assert padded.position_ids_BT[line].tolist() == list(range(max(own)))


def test_a_first_token_is_never_a_label(tmp_path: Path) -> None:
    store = write_store(tmp_path, [4, 3], completion_only=False)
    assert collate(store, [0, 1], Layout(True, PAD)).positions_N.tolist() == [0, 1, 2, 4, 5]
    assert collate(store, [0, 1], Layout(False, PAD)).positions_N.tolist() == [0, 1, 2, 4, 5]
    assert collate(store, [1, 0], Layout(False, PAD)).positions_N.tolist() == [0, 1, 4, 5, 6]


@settings(max_examples=30, deadline=None)
@given(LENGTHS, st.integers(1, 7), st.booleans())
def test_scoring_order_is_longest_first_and_complete(lengths: list[int], rows_per_batch: int, packed: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = write_store(Path(folder), lengths)
        rows = np.arange(len(lengths))[::2]
        batches = list(scoring_batches(store, rows, rows_per_batch, Layout(packed, PAD)))
    assert sorted(row for batch in batches for row in batch.rows) == rows.tolist()
    seen = [length for batch in batches for length in batch.row_lengths]
    assert seen == sorted(seen, reverse=True)
    assert all(len(batch.rows) == rows_per_batch for batch in batches[:-1])


@pytest.mark.parametrize("packed", [True, False])
def test_no_rows_no_batch(tmp_path: Path, packed: bool) -> None:
    assert list(scoring_batches(write_store(tmp_path, [3]), np.empty(0, np.int64), 4, Layout(packed, PAD))) == []


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(2, 60), min_size=1, max_size=200), st.integers(1, 7), st.integers(1, 3))
def test_grouping_by_length_loses_no_row_and_keeps_every_size(lengths: list[int], size: int, accumulation: int) -> None:
    rows = np.arange(1000, 1000 + len(lengths))
    plan = sampler(rows, size, accumulation, seed=3, lengths=np.array(lengths))
    usual = sampler(rows, size, accumulation, seed=3)
    for epoch in (0, 1):
        steps = range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
        batches = [batch for step in steps for batch in plan.micro_batches(step)]
        assert sorted(row for batch in batches for row in batch) == rows.tolist()
        assert [len(batch) for batch in batches] == [
            len(batch) for step in steps for batch in usual.micro_batches(step)
        ]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(2, 60), min_size=1, max_size=200), st.integers(1, 7), st.integers(1, 3), st.booleans())
def test_balancing_deals_the_rows_of_a_step_anew_and_no_others(
    sizes: list[int], most: int, accumulation: int, drop_last: bool
) -> None:
    rows = np.arange(1000, 1000 + len(sizes))
    plan = sampler(rows, most, accumulation, seed=3, drop_last=drop_last, work=np.array(sizes))
    usual = sampler(rows, most, accumulation, seed=3, drop_last=drop_last)
    for step in range(2 * plan.steps_per_epoch):
        dealt, expected = plan.micro_batches(step), usual.micro_batches(step)
        assert len(dealt) == len(expected)
        assert sorted(itertools.chain(*dealt)) == sorted(itertools.chain(*expected))
        assert max(map(len, dealt)) - min(map(len, dealt)) <= 1
        assert max(map(len, dealt)) <= most
        assert drop_last <= (set(map(len, dealt)) == {most})


def test_balanced_micro_batches_of_a_step_are_about_as_much_work() -> None:
    sizes = np.random.default_rng(0).integers(20, 400, 400)

    def longest(plan: BatchSampler) -> float:
        """How much longer than the mean the longest micro-batch of a step is, on average."""
        steps = [[int(sizes[batch].sum()) for batch in plan.micro_batches(step)] for step in range(50)]
        return float(np.mean([max(step) / np.mean(step) for step in steps])) - 1

    rows = np.arange(400)
    assert longest(sampler(rows, 4, 2, 1)) > 0.08
    assert longest(sampler(rows, 4, 2, 1, work=sizes)) < 0.02


def padding(batches: list[list[int]], lengths: dict[int, int]) -> int:
    """Padded tokens of the batches."""
    sizes = [[lengths[row] for row in batch] for batch in batches]
    return sum(max(batch) * len(batch) - sum(batch) for batch in sizes)


def test_epochs_of_grouped_rows_differ_and_repeat() -> None:
    lengths = np.random.default_rng(0).integers(2, 90, 200)
    plans = [sampler(np.arange(200), 4, 2, 1, lengths) for _ in range(2)]
    epochs = [[plans[0].micro_batches(step) for step in range(25 * epoch, 25 * epoch + 25)] for epoch in (0, 1)]
    usual = [batch for step in range(25) for batch in sampler(np.arange(200), 4, 2, 1).micro_batches(step)]
    grouped = [batch for step in epochs[0] for batch in step]
    sizes = dict(enumerate(lengths.tolist()))
    assert padding(grouped, sizes) < 0.15 * padding(usual, sizes)
    assert epochs[0] != epochs[1]
    assert plans[1].micro_batches(30) == plans[0].micro_batches(30)
    assert plans[0].micro_batches(3) == epochs[0][3]
