"""The before/after table that tune, evaluate and compare print, built from metrics.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from luthier.catalog.metrics import METRICS
from luthier.evaluation.verdict import (
    MIN_ROWS,
    Verdict,
    format_interval,
    format_metric,
    judge_difference,
    measured_rows,
)

_STYLES = {
    Verdict.BETTER: "bold green",
    Verdict.WORSE: "bold red",
    Verdict.UNCLEAR: "yellow",
    Verdict.UNCHANGED: "dim",
    Verdict.NOT_MEASURED: "dim",
}


def before_after_table(metrics: Mapping[str, Any]) -> Table:
    """Build the table from {"base", "tuned", "difference", "rows", "scored_by_generation", "split"}.

    If base or tuned is missing, the table has one column. An optional "labels": {"base": ..., "tuned": ...} names the
    columns. Metrics that apply to neither model are left out.
    """
    models = [model for model in ("base", "tuned") if metrics.get(model)]
    labels = metrics.get("labels") or {}
    both = len(models) == 2
    table = Table(box=box.SIMPLE_HEAD, caption=_caption(metrics, both), caption_justify="left", pad_edge=False)
    table.add_column("metric", no_wrap=True)
    for model in models:
        table.add_column(labels.get(model, model), justify="right", style="bold" if model == "tuned" else "")
    if both:
        table.add_column("change", justify="right", no_wrap=True)
        table.add_column("95 % interval", justify="right", no_wrap=True)
        table.add_column("", no_wrap=True)
    for name, metric in METRICS.items():
        if all(metrics[model].get(name) is None for model in models):
            continue
        cells: list[str | Text] = [metric.label, *(format_metric(metrics[model].get(name)) for model in models)]
        if both:
            cells += _difference_cells(metrics, name)
        table.add_row(*cells)
    return table


def _difference_cells(metrics: Mapping[str, Any], name: str) -> list[str | Text]:
    difference = (metrics.get("difference") or {}).get(name)
    verdict = judge_difference(name, difference, measured_rows(metrics, name))
    value = difference["value"] if difference else None
    arrow = "" if not value else "↑ " if value > 0 else "↓ "
    style = _STYLES[verdict]
    return [
        Text(format_metric(value, signed=True), style),
        format_interval(difference),
        Text(f"{arrow}{verdict}", style),
    ]


def _caption(metrics: Mapping[str, Any], both: bool) -> str:
    rows, generated = int(metrics.get("rows") or 0), int(metrics.get("scored_by_generation") or 0)
    split = metrics.get("split")
    text = f"{rows:,} held-out rows" + (f" ({split})" if split else "")
    if generated != rows:
        text += f", {generated:,} with generated text" if generated else ", no generated text"
    if both:
        text += "; paired bootstrap over rows"
    if both and rows < MIN_ROWS:
        text += f"; fewer than {MIN_ROWS} rows: too few for a verdict"
    return text
