"""`luthier evaluate`: scores a run or a base model on the user's rows, optionally with few-shot examples."""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from luthier.catalog.entry import parse_for
from luthier.catalog.hyperparameters import Hyperparameters, parse, precision
from luthier.catalog.shape import context_length
from luthier.data.kind import resolve_kind
from luthier.data.prepare import Dataset, prepare
from luthier.data.settings import DataSettings
from luthier.data.template import Template
from luthier.data.tokenize import Tokenizer, set_threads
from luthier.errors import SettingError, UserError
from luthier.evaluation.compare import compute_metrics
from luthier.evaluation.few_shot import FewShotRows, draw_few_shot_examples
from luthier.evaluation.held_out import EvaluationRows, HeldOutScorer, ScoreSettings
from luthier.evaluation.table import before_after_table
from luthier.home import cache_root
from luthier.jobfolder import write_json
from luthier.weights.load import compute_dtype, find_device
from luthier.weights.resolved_model import ResolvedModel, resolve_model

Array = np.ndarray[Any, Any]


def evaluate(request: dict[str, Any], console: Console) -> None:
    """Score and print; request: {"target", "channels", "kind", "shots", "device", "hyperparameters", "score_rows",
    "json", "out"}. Scores the test split if it has rows, else validation, else all rows.
    """
    notes = Console(stderr=True) if request.get("json") else console
    target = resolve_model(request["target"], lambda text: notes.print(text, highlight=False))
    values = _settings(target, request.get("hyperparameters") or {})
    set_threads(cast("int | None", values["preprocessing_num_workers"]))
    tokenizer = Tokenizer.load(target.base, target.chat_template, target.chat_date)
    prepared = _prepare(target, request, values, tokenizer)
    rows, example_pool, split = _select_rows(prepared)
    device = find_device(request.get("device", "auto"))
    model = target.load(device, target.dtype or compute_dtype(precision(values), device))
    settings = ScoreSettings(
        generation_rows=int(request.get("score_rows", -1)), seed=int(values["train_data_split_seed"] or 0),
        rows_per_batch=int(values["per_device_eval_batch_size"] or 1), packing=bool(values["packing"]),
    )  # fmt: skip
    shots = int(request.get("shots") or 0)
    with tempfile.TemporaryDirectory() as folder:
        data: EvaluationRows = prepared
        if shots:
            example_pool, rows = _separate_examples(example_pool, rows, shots, settings.seed)
            examples = draw_few_shot_examples(prepared, example_pool, shots, settings.seed)
            data = FewShotRows(prepared, tokenizer, rows, examples, Path(folder), model.context_length)
            rows = data.rows
            settings = replace(settings, answer_end=data.answer_end)
        scorer = HeldOutScorer(data, tokenizer, rows, settings)
        scores = Path(request["out"] or folder) / "scores.jsonl"
        with _progress_bar(notes, len(rows), split) as bar:
            task = bar.add_task("", total=scorer.work)
            scorer.score(model, scores, lambda count: bar.advance(task, count))
        metrics = compute_metrics(scores, str(values["answer_pattern"] or ""))
    metrics["notes"] = [*prepared.warnings, *metrics["notes"]]
    _show(request, console, metrics, target.name + (f", {shots} examples in the prompt" if shots else ""), split)


def _settings(target: ResolvedModel, overrides: dict[str, Any]) -> Hyperparameters:
    """The run's settings, or the model's defaults for a base model, with `overrides` applied."""
    if target.provenance:
        return parse(overrides, target.provenance["settings"])
    return parse_for(target.entry, overrides)


def _prepare(target: ResolvedModel, request: dict[str, Any], values: Hyperparameters, tokenizer: Tokenizer) -> Dataset:
    channels = {name: Path(path) for name, path in request["channels"].items()}
    stored = target.provenance.get("template")
    trained_kind = target.provenance.get("kind")
    requested_kind = request.get("kind") or "auto"
    if trained_kind and requested_kind == "auto":
        kind = str(trained_kind)
    else:
        kind = resolve_kind(requested_kind, values, values.explicit, channels["training"])
    positions = context_length(target.base, target.entry)
    settings = DataSettings.from_hyperparameters(kind, values, frozenset(), target.entry, positions)
    settings = settings.scoring_only(Template.from_json(stored) if stored else None)
    return prepare(channels, settings, tokenizer, cache_root())


def _select_rows(prepared: Dataset) -> tuple[Array, Array, str]:
    """Return the rows to score, the rows that few-shot examples may come from, and the split's name."""
    splits = prepared.split
    for name, rows in (("test", splits.test), ("validation", splits.validation)):
        if len(rows):
            return rows, splits.train, name
    if not len(splits.train):
        raise UserError("no rows left to score")
    return splits.train, splits.train, "given"


def _separate_examples(example_pool: Array, rows: Array, shots: int, seed: int) -> tuple[Array, Array]:
    """Set example rows aside if they would come from the scored rows; returns (example pool, rows to score)."""
    if example_pool is not rows:
        return example_pool, rows
    if shots >= len(rows):
        raise SettingError(f"--shots {shots}: none of the {len(rows)} rows would be left to score; use fewer")
    drawn = np.random.default_rng(seed).permutation(rows)[:shots]
    return np.sort(drawn), np.setdiff1d(rows, drawn)


def _progress_bar(console: Console, count: int, split: str) -> Progress:
    return Progress(
        TextColumn(f"scoring {count:,} {split} rows"), BarColumn(), MofNCompleteColumn(), console=console,
        disable=not console.is_terminal,
    )  # fmt: skip


def _show(request: dict[str, Any], console: Console, metrics: dict[str, Any], name: str, split: str) -> None:
    result = metrics | {"model": name, "split": split}
    if request.get("out"):
        write_json(Path(request["out"]) / "metrics.json", result)
    if request.get("json"):
        sys.stdout.write(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
        return
    table = {"tuned": metrics, "labels": {"tuned": name}, "split": split}
    console.print(before_after_table(table | {key: metrics[key] for key in ("rows", "scored_by_generation")}))
    for note in metrics["notes"]:
        console.print(f"[yellow]note:[/] {escape(note)}", highlight=False)
