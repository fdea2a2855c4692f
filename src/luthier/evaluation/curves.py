"""A run's curves, read from metrics.jsonl: training loss, learning rate, evaluation loss.

The file is streamed; about 60 bytes per logged step stay in memory. An incomplete line (the process was killed) is
skipped. Of a step logged twice, before and after a resume, the last value counts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

Points = list[tuple[float, float]]
"""(step, value), sorted by step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Curves:
    """`skipped`: lines that are not JSON objects; `not_finite`: values left out because they are NaN or infinite."""

    loss: Points = field(default_factory=list)
    learning_rate: Points = field(default_factory=list)
    eval_loss: Points = field(default_factory=list)
    eval_token_accuracy: Points = field(default_factory=list)
    skipped: int = 0
    not_finite: int = 0


def read_curves(path: Path) -> Curves:
    """Read metrics.jsonl; a missing file gives empty curves."""
    names = ("loss", "learning_rate", "eval_loss", "eval_token_accuracy")
    series: dict[str, dict[float, float]] = {name: {} for name in names}
    skipped = not_finite = 0
    if path.is_file():
        with open(path, encoding="utf-8", errors="replace", newline="\n") as handle:
            for line in handle:
                try:
                    entry = json.loads(line)
                    step = float(entry["step"])
                except (ValueError, KeyError, TypeError):
                    skipped += 1
                    continue
                for name, points in series.items():
                    value = entry.get(name)
                    if not isinstance(value, int | float):
                        continue
                    if math.isfinite(value):
                        points[step] = float(value)
                    else:
                        not_finite += 1
    curves = {name: sorted(points.items()) for name, points in series.items()}
    return Curves(**curves, skipped=skipped, not_finite=not_finite)


def smoothed(points: Sequence[tuple[float, float]], share: float = 0.05) -> Points:
    """Centred moving average over `share` of the points (at least 3)."""
    half = max(1, round(len(points) * share / 2))
    sums = [0.0]
    for _, value in points:
        sums.append(sums[-1] + value)
    result: Points = []
    for index, (step, _) in enumerate(points):
        reach = min(half, index, len(points) - 1 - index)  # symmetric, so that the ends do not bend
        low, high = index - reach, index + reach + 1
        result.append((step, (sums[high] - sums[low]) / (high - low)))
    return result


def thinned(points: Sequence[tuple[float, float]], count: int = 400) -> Points:
    """At most `count` points, each the mean of a group: a chart has no more pixels."""
    if len(points) <= count:
        return list(points)
    edges = [round(index * len(points) / count) for index in range(count + 1)]
    groups = (points[low:high] for low, high in pairwise(edges))
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]
