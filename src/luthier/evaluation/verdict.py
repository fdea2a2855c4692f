"""Verdicts on the difference of a metric, and how metrics are formatted.

A difference is tuned minus base, with its 95 % interval:

    {"value": 0.41, "low": 0.33, "high": 0.49}      low and high are null if there are too few rows
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from luthier.catalog.metrics import METRICS

MIN_ROWS = 10
"""With fewer rows no difference is called better or worse: a bootstrap of so few rows is too narrow."""

TEXT_METRICS = tuple(name for name, metric in METRICS.items() if metric.needs_generation)


class Verdict(StrEnum):
    """What the interval of a difference supports."""

    BETTER = "better"
    WORSE = "worse"
    UNCLEAR = "unclear"
    UNCHANGED = "unchanged"
    NOT_MEASURED = "not measured"


def judge_difference(name: str, difference: Mapping[str, Any] | None, rows: int) -> Verdict:
    """Return whether the tuned model is better at metric `name`: "better" and "worse" need an interval without zero.

    `rows` is the number of rows the metric was measured on; below MIN_ROWS the verdict is "unclear".
    """
    if not difference or difference.get("value") is None:
        return Verdict.NOT_MEASURED
    low, high = difference.get("low"), difference.get("high")
    if low is None or high is None or rows < MIN_ROWS:
        return Verdict.UNCLEAR
    if low == high == 0:
        return Verdict.UNCHANGED
    if low <= 0 <= high:
        return Verdict.UNCLEAR
    return Verdict.BETTER if (low > 0) == METRICS[name].higher_is_better else Verdict.WORSE


def measured_rows(metrics: Mapping[str, Any], name: str) -> int:
    """Return the number of rows that a metric of metrics.json was measured on."""
    return int(metrics.get("scored_by_generation" if METRICS[name].needs_generation else "rows") or 0)


def exact_match_lags(metrics: Mapping[str, Any]) -> bool:
    """Whether ROUGE-L is better while exact match is unclear or unchanged, for rows that can be answered exactly.

    Those are rows with labels (F1 applies), or of which a model answered some exactly; free text is not among them.
    """
    values = [(metrics.get(model) or {}).get("exact_match") or 0.0 for model in ("base", "tuned")]
    if max(values) == 0 and (metrics.get("tuned") or {}).get("f1") is None:
        return False
    differences = metrics.get("difference") or {}
    rouge, exact = (judge_difference(name, differences.get(name), measured_rows(metrics, name))
                    for name in ("rougeL", "exact_match"))  # fmt: skip
    return rouge is Verdict.BETTER and exact in (Verdict.UNCLEAR, Verdict.UNCHANGED)


def format_metric(value: float | None, signed: bool = False) -> str:
    """Format a metric: three decimals, fewer for large numbers, a dash for None."""
    if value is None:
        return "–"
    sign = "+" if signed and value else ""
    size = abs(value)
    if size >= 1e6:
        return f"{value:{sign}.2e}"
    text = f"{value:{sign},.0f}" if size >= 1000 else f"{value:{sign}.{1 if size >= 100 else 3}f}"
    return text.replace("-", "−")


def format_interval(difference: Mapping[str, Any] | None) -> str:
    """Format the interval of a difference: ``+0.330 … +0.490``, or a dash."""
    if not difference or difference.get("low") is None or difference.get("high") is None:
        return "–"
    return f"{format_metric(difference['low'], signed=True)} … {format_metric(difference['high'], signed=True)}"
