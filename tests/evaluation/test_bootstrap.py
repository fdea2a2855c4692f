"""The bootstrap covers what it says, repeats by seed, and holds no rows x resamples array."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from luthier.evaluation import bootstrap
from luthier.evaluation.bootstrap import percentile_interval, resampled_counts, resampled_sums


def test_each_draw_takes_as_many_rows_as_there_are() -> None:
    sums = resampled_sums(np.ones((7, 1)), np.random.default_rng(0), 50)
    assert sums.shape == (50, 1)
    assert (sums == 7).all()


def test_columns_are_drawn_together() -> None:
    column = np.arange(20.0)
    sums = resampled_sums(np.stack([column, 3 * column], axis=1), np.random.default_rng(0), 100)
    assert np.allclose(sums[:, 1], 3 * sums[:, 0])
    assert sums[:, 0].std() > 10


def test_chunks_only_bound_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draws are spread as the theory says, chunk after chunk; no chunk repeats another."""
    monkeypatch.setattr(bootstrap, "CHUNK_VALUES", 250)
    column = np.random.default_rng(1).normal(size=(100, 1))
    sums = resampled_sums(column, np.random.default_rng(0), 2001)[:, 0]
    assert len(np.unique(sums)) > 1990
    assert sums.mean() == pytest.approx(column.sum(), abs=1)
    assert sums.std() == pytest.approx(column.std() * 10, rel=0.1)


def test_memory_is_bounded() -> None:
    columns = np.ones((200_000, 2))
    tracemalloc.start()
    resampled_sums(columns, np.random.default_rng(0), 20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6  # 20 x 200,000 numbers would be 32 MB, three arrays of them 96 MB


def test_intervals_cover_the_truth_about_95_times_of_100() -> None:
    """Token-weighted ratio, true difference -0.5; 200 data sets of 60 rows."""
    draw = np.random.default_rng(11)
    covered = 0
    for seed in range(200):
        tokens = draw.integers(1, 20, size=60).astype(float)
        base = tokens * draw.normal(2.0, 0.4, size=60)
        tuned = base + tokens * draw.normal(-0.5, 0.3, size=60)
        sums = resampled_sums(np.stack([base, tuned, tokens], axis=1), np.random.default_rng(seed), 1000)
        low, high = percentile_interval((sums[:, 1] - sums[:, 0]) / sums[:, 2])
        assert low is not None
        assert high is not None
        covered += low <= -0.5 <= high
    assert 0.90 <= covered / 200 <= 0.985


def test_counts_are_spread_as_resampled_rows_are() -> None:
    cells = np.array([30, 10])
    by_counts = resampled_counts(cells, np.random.default_rng(0), 4000)[:, 0]
    by_rows = resampled_sums(np.repeat([[1.0], [0.0]], cells, axis=0), np.random.default_rng(0), 4000)[:, 0]
    assert by_counts.mean() == pytest.approx(30, abs=0.2)
    assert by_counts.std() == pytest.approx(by_rows.std(), rel=0.06)
    assert by_counts.std() == pytest.approx((40 * 0.75 * 0.25) ** 0.5, rel=0.06)


def test_interval_leaves_undefined_draws_out() -> None:
    assert percentile_interval(np.array([np.nan, 1.0, np.inf, 1.0])) == (1, 1)
    assert percentile_interval(np.array([np.nan])) == (None, None)
    low, high = percentile_interval(np.arange(1001.0))
    assert (low, high) == (25, 975)
