"""The values of a job's metrics over time: JumpStart's of metrics.jsonl, others by Regex from the log."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import regex

from luthier.errors import UserError
from luthier.jobfolder import JobFolder

PATTERN_SECONDS = 0.05
# Endings of JumpStart's metric names: the metric of metrics.jsonl.
JUMPSTART_METRICS = {"eval-loss": "eval_loss", "eval-ppl": "eval_ppl", "train-loss": "loss"}


@dataclass(frozen=True, slots=True)
class MetricPoint:
    """One value of a metric; `time` in seconds since 1970."""

    time: float
    value: float


def jumpstart_metric(name: str) -> str | None:
    """The metric of metrics.jsonl that one of JumpStart's names stands for; None for another name."""
    return JUMPSTART_METRICS.get(name.rsplit(":", 1)[-1])


def metric_points(folder: Path, name: str, definitions: Sequence[Mapping[str, Any]]) -> list[MetricPoint]:
    """The finite values of a metric in a job's folder, in order of time; none for an unknown name.

    `definitions` are the request's MetricDefinitions. UserError for a Regex that cannot be read or takes too long.
    """
    metric = jumpstart_metric(name)
    pattern = next((one["Regex"] for one in definitions if one["Name"] == name), None)
    if metric is not None:
        points = _recorded(JobFolder(folder).metrics_lines, metric)
    elif pattern is not None:
        points = _matched(folder / "logs" / "events.jsonl", name, pattern)
    else:
        return []
    return sorted((point for point in points if math.isfinite(point.value)), key=lambda point: point.time)


def find_number(pattern: regex.Pattern[str], text: str) -> float | None:
    """The number that the first group of `pattern` finds in `text`; None without one. TimeoutError."""
    match = pattern.search(text, timeout=PATTERN_SECONDS)
    try:
        return float(match.group(1)) if match else None
    except (ValueError, IndexError, TypeError):
        return None  # no number: ignored, as by SageMaker


def log_lines(events: Path) -> Iterator[dict[str, Any]]:
    """The lines of events.jsonl: `timestamp` in milliseconds, `message`."""
    if events.is_file():  # it is missing when the disk was full
        with open(events, encoding="utf-8", errors="replace") as handle:
            for line in handle:
                if line.endswith("\n"):
                    yield json.loads(line)


def _recorded(path: Path, metric: str) -> Iterator[MetricPoint]:
    source = "eval_loss" if metric == "eval_ppl" else metric
    if not path.is_file():
        return
    for line in path.read_bytes().splitlines():
        try:
            numbers = json.loads(line)
        except ValueError:
            continue  # the engine is writing it, or dropping lines as it resumes
        value, time = numbers.get(source), numbers.get("time")
        if isinstance(value, int | float) and isinstance(time, int | float):
            yield MetricPoint(time, _perplexity(value) if metric == "eval_ppl" else float(value))


def _perplexity(loss: float) -> float:
    return math.exp(loss) if loss < 700 else math.inf


def _matched(events: Path, name: str, text: str) -> Iterator[MetricPoint]:
    try:
        pattern = regex.compile(text)
    except regex.error as error:
        raise UserError(f"metric {name}: its Regex cannot be read: {error}") from None
    for line in log_lines(events):
        if "message" not in line:
            continue  # the first line of a log that was shortened
        try:
            value = find_number(pattern, line["message"])
        except TimeoutError:
            raise UserError(f"metric {name}: its Regex takes more than {PATTERN_SECONDS} s on a line") from None
        if value is not None:
            yield MetricPoint(line["timestamp"] / 1000, value)
