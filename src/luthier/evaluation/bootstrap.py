"""Paired bootstrap over rows: how much a difference would vary with other held-out rows.

Rows are drawn with replacement; the base and tuned scores of a row are drawn together. The 95 % interval is the
percentile interval of the statistic over the resamples. Resampling runs in chunks, so memory does not grow with
rows x resamples. Works on columns of numbers only.
"""

from __future__ import annotations

from typing import Any

import numpy as np

RESAMPLES = 2000
CHUNK_VALUES = 1_000_000
"""Values held in memory while resampling: about 24 MB."""

Array = np.ndarray[Any, Any]


def resampled_sums(columns: Array, rng: np.random.Generator, resamples: int = RESAMPLES) -> Array:
    """Sum each column over rows drawn with replacement. columns: (R, K) float -> (resamples, K)."""
    rows, width = columns.shape
    sums = np.empty((resamples, width))
    step = max(1, CHUNK_VALUES // max(rows, 1))
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        drawn = rng.integers(0, rows, size=(size, rows)) + np.arange(size)[:, None] * rows
        draw_counts = np.bincount(drawn.reshape(-1), minlength=size * rows).reshape(size, rows)
        sums[start : start + size] = draw_counts.astype(np.float64) @ columns
    return sums


def resampled_counts(counts: Array, rng: np.random.Generator, resamples: int = RESAMPLES) -> Array:
    """Resample rows of K categories. counts: (K,) rows per category -> (resamples, K).

    Drawing rows with replacement equals a multinomial draw over the categories.
    """
    total = int(counts.sum())
    return rng.multinomial(total, counts / total, size=resamples)


def percentile_interval(values: Array) -> tuple[float | None, float | None]:
    """Return the middle 95 % of the values, ignoring NaN and infinities; (None, None) if no finite value is left."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return None, None
    low, high = np.quantile(finite, [0.025, 0.975])
    return float(low), float(high)
