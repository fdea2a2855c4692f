"""Paired bootstrap: how far a difference would move had other rows been held out.

Rows are drawn with replacement, base and tuned score of a row always together. The percentile interval of the
statistic over the draws is its 95 % interval. Memory is bounded: draws are made in chunks, never rows x resamples
at once. Knows only columns of numbers.
"""

from __future__ import annotations

from typing import Any

import numpy as np

RESAMPLES = 2000
CHUNK = 1_000_000
"""Numbers held at once while resampling: about 24 MB."""

Array = np.ndarray[Any, Any]


def resampled_sums(columns: Array, rng: np.random.Generator, resamples: int = RESAMPLES) -> Array:
    """Sums of each column over rows drawn with replacement. columns: (R, K) float -> (resamples, K)."""
    rows, width = columns.shape
    sums = np.empty((resamples, width))
    step = max(1, CHUNK // max(rows, 1))
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        drawn = rng.integers(0, rows, size=(size, rows)) + np.arange(size)[:, None] * rows
        times_drawn = np.bincount(drawn.reshape(-1), minlength=size * rows).reshape(size, rows)
        sums[start : start + size] = times_drawn.astype(np.float64) @ columns
    return sums


def resampled_counts(cells: Array, rng: np.random.Generator, resamples: int = RESAMPLES) -> Array:
    """Counts per kind of row when all rows are drawn anew. cells: (K,) counts -> (resamples, K).

    Drawing R rows with replacement is a multinomial draw over the kinds of rows, whatever R is.
    """
    total = int(cells.sum())
    return rng.multinomial(total, cells / total, size=resamples)


def interval(values: Array) -> tuple[float | None, float | None]:
    """Middle 95 % of resampled values; undefined draws (no token, no class) are left out, (None, None) if all are."""
    defined = values[np.isfinite(values)]
    if not len(defined):
        return None, None
    low, high = np.quantile(defined, [0.025, 0.975])
    return float(low), float(high)
