"""A job's metrics under SageMaker's names: its progress while it trains, final metrics, and a candidate's metrics.

Reads the engine's metrics.jsonl and metrics.json.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import regex

from luthier.catalog.metrics import METRICS
from luthier.jobs.metric_history import (
    JUMPSTART_METRICS,
    PATTERN_SECONDS,
    find_number,
    jumpstart_metric,
    log_lines,
)

MAX_METRICS = 40  # entries of FinalMetricDataList and of CandidateMetrics
# Autopilot's StandardMetricName: where metrics.json has it for the tuned model.
_STANDARD = {"Rouge1": "rouge1", "Rouge2": "rouge2", "RougeL": "rougeL", "RougeLSum": "rougeLsum",
             "Perplexity": "perplexity", "ValidationLoss": "loss"}  # fmt: skip


@dataclass(slots=True)
class MetricsReader:
    """The latest metrics of a metrics.jsonl that is being written; `read` reads the lines added since."""

    path: Path
    latest: dict[str, float] = field(default_factory=dict)
    _offset: int = 0

    def read(self) -> bool:
        """Read new lines; whether there were any. A file that shrank is read anew: a resumed engine drops lines."""
        size = self.path.stat().st_size if self.path.exists() else 0
        if size < self._offset:
            self._offset = 0
        if size == self._offset:
            return False
        with open(self.path, "rb") as handle:
            handle.seek(self._offset)
            data = handle.read(4 << 20)
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.splitlines():
            try:
                numbers = json.loads(line)
            except ValueError:
                continue  # the engine is dropping lines right now: the next read starts over
            self.latest |= {name: value for name, value in numbers.items() if _is_number(value)}
        return bool(whole)

    def progress(self, epochs: float | None, steps: int | None) -> dict[str, int]:
        """SageMaker's ProgressInfo, as far as it is known; `epochs` and `steps` (-1: no limit) are hyperparameters."""
        step, epoch = self.latest.get("step"), self.latest.get("epoch")
        if not step or not epoch:
            return {}
        per_epoch = max(1, round(step / epoch))
        if steps and steps > 0:
            epochs = math.ceil(steps / per_epoch)
        info = {
            "TotalStepCountPerEpoch": per_epoch,
            "CurrentStep": int(step) - (math.ceil(step / per_epoch) - 1) * per_epoch,
            "CurrentEpoch": math.ceil(step / per_epoch),
        }
        return info | ({"MaxEpoch": math.ceil(epochs)} if epochs else {})


def current_metrics(reader: MetricsReader, metric_names: Sequence[str]) -> list[dict[str, Any]]:
    """FinalMetricDataList so far: the last value of each metric, also while the job runs."""
    loss = reader.latest.get("eval_loss")
    values = reader.latest | ({"eval_ppl": math.exp(loss)} if loss is not None and loss < 700 else {})
    return _data(reader, ((name, values.get(jumpstart_metric(name) or "")) for name in metric_names))


def metric_names(definitions: Sequence[Mapping[str, Any]], pairs: bool) -> list[str]:
    """The metric names of the request that are JumpStart's; all of JumpStart's if there are none."""
    defined = [str(one["Name"]) for one in definitions if jumpstart_metric(str(one["Name"]))]
    if defined:
        return defined
    if pairs:
        return ["huggingface-text2text:eval-loss", "huggingface-text2text:train-loss"]
    return [f"huggingface-textgeneration:{ending}" for ending in JUMPSTART_METRICS]


def regex_metrics(events: Path, definitions: Sequence[Mapping[str, Any]]) -> tuple[dict[str, float], list[str]]:
    """The last value in the log of each metric that the request defines by its own Regex, and the faults.

    The first group of a Regex is the value. An invalid Regex, or one that takes too long, matches nothing.
    """
    patterns: dict[str, regex.Pattern[str]] = {}
    faults = []
    for one in definitions:
        if jumpstart_metric(str(one["Name"])) is None:
            try:
                patterns[one["Name"]] = regex.compile(one["Regex"])
            except regex.error as error:
                faults.append(f"metric {one['Name']}: its Regex cannot be read: {error}")
    values: dict[str, float] = {}
    for line in log_lines(events) if patterns else ():
        for name, pattern in list(patterns.items()):
            try:
                number = find_number(pattern, line.get("message", ""))
                values |= {} if number is None else {name: number}
            except TimeoutError:
                faults.append(f"metric {name}: its Regex takes more than {PATTERN_SECONDS} s on a line; it is left out")
                del patterns[name]
    return {name: value for name, value in values.items() if math.isfinite(value)}, faults


def final_metrics(
    reader: MetricsReader, path: Path, metric_names: Sequence[str], regex_values: Mapping[str, float] | None = None
) -> list[dict[str, Any]]:
    """FinalMetricDataList of a finished job: JumpStart's names, `regex_values`, then the base and the tuned model's.

    The validation loss is that of the best checkpoint.
    """
    metrics = _metrics(path)
    best = (metrics.get("best") or {}).get("eval_loss")
    if best is not None:
        reader.latest["eval_loss"] = best
    pairs = ((f"luthier:{model}:{name}", (metrics.get(model) or {}).get(name))
             for model in ("base", "tuned") for name in METRICS)  # fmt: skip
    return (current_metrics(reader, metric_names) + _data(reader, (regex_values or {}).items()) + _data(reader, pairs))[
        :MAX_METRICS
    ]


def candidate_metrics(reader: MetricsReader, path: Path) -> list[dict[str, Any]]:
    """CandidateMetrics, by their StandardMetricName."""
    tuned = _metrics(path).get("tuned") or {}
    metrics = [
        {"StandardMetricName": name, "Value": float(tuned[key]), "Set": "Validation"}
        for name, key in _STANDARD.items()
        if tuned.get(key) is not None
    ]
    if "loss" in reader.latest:
        metrics.append({"StandardMetricName": "TrainingLoss", "Value": float(reader.latest["loss"]), "Set": "Train"})
    return metrics


def _is_number(value: Any) -> bool:
    """Whether it is a finite number; JSON in a database cannot hold NaN."""
    return isinstance(value, int | float) and math.isfinite(value)


def _metrics(path: Path) -> dict[str, Any]:
    stored: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return stored


def _data(reader: MetricsReader, pairs: Iterable[tuple[str, Any]]) -> list[dict[str, Any]]:
    stamp = reader.latest.get("time") or time.time()
    return [
        {"MetricName": name, "Value": float(value), "Timestamp": stamp} for name, value in pairs if value is not None
    ]
