"""The report's charts and before/after table rows, built from a run's numbers.

Most charts are drawn twice, wide and narrow; the page shows the one that fits, so that text stays readable on a phone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from luthier.catalog.metrics import METRICS
from luthier.evaluation.charts import Series, dumbbell, histogram, line_chart
from luthier.evaluation.curves import Curves, smoothed, thinned
from luthier.evaluation.ledger_summary import LedgerSummary
from luthier.evaluation.verdict import format_interval, format_metric, judge_difference, measured_rows

WIDE, NARROW = 920, 400
MAX_BARS = 48


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricChange:
    """One row of the before/after table, formatted; `verdict` is also its CSS class."""

    label: str
    meaning: str
    base: str
    tuned: str
    difference: str
    interval: str
    verdict: str
    chart: Markup


def metric_changes(metrics: Mapping[str, Any]) -> list[MetricChange]:
    """Build the before/after table of metrics.json; empty if one of the models was not scored."""
    base, tuned = metrics.get("base"), metrics.get("tuned")
    if not base or not tuned:
        return []
    rows = []
    for name, metric in METRICS.items():
        before, after = base.get(name), tuned.get(name)
        if before is None and after is None:
            continue
        difference = (metrics.get("difference") or {}).get(name)
        verdict = str(judge_difference(name, difference, measured_rows(metrics, name)))
        chart = Markup("")
        if before is not None and after is not None:
            top = 1.0 if metric.higher_is_better else max(before, after, 1e-9) * 1.05
            title = f"{metric.label}: base {format_metric(before)}, tuned {format_metric(after)}"
            chart = dumbbell(before, after, top, verdict.replace(" ", "-"), title)
        row = MetricChange(
            label=metric.label,
            meaning=metric.meaning,
            base=format_metric(before),
            tuned=format_metric(after),
            difference=format_metric(difference["value"] if difference else None, signed=True),
            interval=format_interval(difference),
            verdict=verdict,
            chart=chart,
        )  # fmt: skip
        rows.append(row)
    return rows


def loss_charts(curves: Curves, best: Mapping[str, Any]) -> list[Markup]:
    """Training loss, logged and smoothed, and evaluation loss with the best step marked: wide and narrow."""
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
        line_chart(series, width, height, mark=mark, description="Loss by training step")
        for width, height in ((WIDE, 340), (NARROW, 270))
        if series
    ]


def learning_rate_chart(curves: Curves) -> Markup:
    """The learning rate by step, one small chart."""
    series = [Series("learning rate", "rate", thinned(curves.learning_rate, 200))]
    return line_chart(series, NARROW, 150, description="Learning rate by training step")


def length_charts(ledger: LedgerSummary | None, limit: int | None) -> list[Markup]:
    """Histogram of row lengths in tokens, without dropped rows: wide and narrow."""
    if ledger is None or not ledger.lengths.any():
        return []
    bars = length_bars(ledger.lengths)
    # A limit far above the longest row would squeeze the bars, so it is left out.
    drawn_limit = float(limit) if limit and limit > 0 and limit <= 1.5 * bars[-1][1] else None
    return [
        histogram(bars, width, height, limit=drawn_limit, description="Rows by number of tokens")
        for width, height in ((WIDE, 240), (NARROW, 220))
    ]


def length_bars(lengths: np.ndarray[Any, Any]) -> list[tuple[float, float, int]]:
    """lengths: rows per number of tokens -> about MAX_BARS bars of equal, round width."""
    present = np.flatnonzero(lengths)
    low, high = int(present[0]), int(present[-1]) + 1
    raw = max(1, (high - low) / MAX_BARS)
    width = next(int(factor * 10**power) for power in range(7) for factor in (1, 2, 4, 5) if factor * 10**power >= raw)
    start = low // width * width
    edges = range(start, high, width)
    return [(float(edge), float(edge + width), int(lengths[edge : edge + width].sum())) for edge in edges]
