"""The metrics that say how good a model is: their names, order, direction, and the words for a difference.

Knows nothing of files or models. A difference is always tuned minus base, with its 95 % interval:

    {"value": 0.41, "low": 0.33, "high": 0.49}      low and high are null where there are too few rows for one
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from luthier.catalog.metrics import METRICS

FEW_ROWS = 10
"""Below so many rows no difference is called better or worse: a bootstrap of a handful of rows is too narrow."""

TEXT_METRICS = tuple(name for name, metric in METRICS.items() if metric.needs_generation)


class Verdict(StrEnum):
    """What an interval lets one say of a difference."""

    BETTER = "better"
    WORSE = "worse"
    UNCLEAR = "unclear"
    UNCHANGED = "unchanged"
    NOT_MEASURED = "not measured"


def verdict(name: str, difference: Mapping[str, Any] | None, rows: int) -> Verdict:
    """Say whether the tuned model is better at metric `name`: only an interval that excludes zero decides.

    `rows` is the number of rows the metric was measured on; below FEW_ROWS the answer is "unclear".
    """
    if not difference or difference.get("value") is None:
        return Verdict.NOT_MEASURED
    low, high = difference.get("low"), difference.get("high")
    if low is None or high is None or rows < FEW_ROWS:
        return Verdict.UNCLEAR
    if low == high == 0:
        return Verdict.UNCHANGED
    if low <= 0 <= high:
        return Verdict.UNCLEAR
    return Verdict.BETTER if (low > 0) == METRICS[name].higher_is_better else Verdict.WORSE


def shown(value: float | None, signed: bool = False) -> str:
    """A metric for people: three decimals, fewer where the number is large, a dash where there is none."""
    if value is None:
        return "–"
    sign = "+" if signed and value else ""
    size = abs(value)
    if size >= 1e6:
        return f"{value:{sign}.2e}"
    text = f"{value:{sign},.0f}" if size >= 1000 else f"{value:{sign}.{1 if size >= 100 else 3}f}"
    return text.replace("-", "−")


def shown_interval(difference: Mapping[str, Any] | None) -> str:
    """The interval of a difference for people: ``+0.330 … +0.490``, or a dash."""
    if not difference or difference.get("low") is None or difference.get("high") is None:
        return "–"
    return f"{shown(difference['low'], signed=True)} … {shown(difference['high'], signed=True)}"
