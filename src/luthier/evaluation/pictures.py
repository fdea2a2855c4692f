"""The report's pictures and table rows: the run's numbers laid out for charts.py and the page.

Each chart is drawn twice, wide and narrow, and the page shows the one that fits, so that its text stays readable on
a phone. Knows no files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from luthier.catalog.metrics import METRICS
from luthier.evaluation.charts import Series, dumbbell, histogram, lines
from luthier.evaluation.curves import Curves, smoothed, thinned
from luthier.evaluation.fates import Fates
from luthier.evaluation.metric import shown, shown_interval, verdict
from luthier.evaluation.table import measured_rows

WIDE, NARROW = 920, 400
MOST_BARS = 48


@dataclass(frozen=True, slots=True)
class Change:
    """One row of the before/after table, ready to print; `said` is also its CSS class."""

    label: str
    meaning: str
    base: str
    tuned: str
    value: str
    interval: str
    said: str
    picture: Markup


def changes(metrics: Mapping[str, Any]) -> list[Change]:
    """The before/after table of metrics.json; empty where one of the models was not scored."""
    base, tuned = metrics.get("base"), metrics.get("tuned")
    if not base or not tuned:
        return []
    rows = []
    for name, metric in METRICS.items():
        first, second = base.get(name), tuned.get(name)
        if first is None and second is None:
            continue
        difference = (metrics.get("difference") or {}).get(name)
        said = str(verdict(name, difference, measured_rows(metrics, name)))
        picture = Markup("")
        if first is not None and second is not None:
            top = 1.0 if metric.higher_is_better else max(first, second, 1e-9) * 1.05
            title = f"{metric.label}: base {shown(first)}, tuned {shown(second)}"
            picture = dumbbell(first, second, top, said.replace(" ", "-"), title)
        rows.append(
            Change(
                metric.label,
                metric.meaning,
                shown(first),
                shown(second),
                shown(difference["value"] if difference else None, signed=True),
                shown_interval(difference),
                said,
                picture,
            )
        )
    return rows


def loss_picture(curves: Curves, best: Mapping[str, Any]) -> list[Markup]:
    """Training loss as logged and smoothed, evaluation loss as points, the best step ringed: wide and narrow."""
    series = []
    if curves.loss:
        series += [
            Series("training loss", "raw", thinned(curves.loss)),
            Series("training loss, smoothed", "train", thinned(smoothed(curves.loss), 120), dots=False),
        ]
    if curves.eval_loss:
        series.append(Series("evaluation loss", "eval", thinned(curves.eval_loss, 200), dots=True))
    mark = None
    if best.get("step") is not None and best.get("eval_loss") is not None:
        mark = (
            float(best["step"]),
            float(best["eval_loss"]),
            f"best: {best['eval_loss']:.3f} at step {best['step']:,}",
        )
    return [
        lines(series, width, height, mark=mark, describe="Loss by training step")
        for width, height in ((WIDE, 340), (NARROW, 270))
        if series
    ]


def rate_picture(curves: Curves) -> Markup:
    """The learning rate by step, small."""
    series = [Series("learning rate", "rate", thinned(curves.learning_rate, 200))]
    return lines(series, NARROW, 150, describe="Learning rate by training step")


def length_picture(fates: Fates | None, limit: int | None) -> list[Markup]:
    """How long the kept rows are, in tokens: wide and narrow."""
    if fates is None or not fates.lengths.any():
        return []
    bars = length_bars(fates.lengths)
    # A limit far to the right of every row would squeeze the bars; it is then said in words on the page.
    drawn = float(limit) if limit and limit > 0 and limit <= 1.5 * bars[-1][1] else None
    return [
        histogram(bars, width, height, limit=drawn, describe="Rows by number of tokens")
        for width, height in ((WIDE, 240), (NARROW, 220))
    ]


def length_bars(lengths: np.ndarray[Any, Any]) -> list[tuple[float, float, int]]:
    """lengths: rows per number of tokens -> at most MOST_BARS bars of equal, round width."""
    present = np.flatnonzero(lengths)
    low, high = int(present[0]), int(present[-1]) + 1
    raw = max(1, (high - low) / MOST_BARS)
    width = next(int(factor * 10**power) for power in range(7) for factor in (1, 2, 4, 5) if factor * 10**power >= raw)
    start = low // width * width
    edges = range(start, high, width)
    return [(float(edge), float(edge + width), int(lengths[edge : edge + width].sum())) for edge in edges]
