"""`luthier evaluate`: a run, or a base model with or without examples in its prompt, scored on rows of the user's."""

from __future__ import annotations

import json
import sys
import tempfile
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
from luthier.evaluation.compare import summarise
from luthier.evaluation.held_out import HeldOut, Rows, ScoreSettings
from luthier.evaluation.shots import ShotRows, draw_shots
from luthier.evaluation.table import before_after_table
from luthier.home import cache_root
from luthier.jobfolder import write_json
from luthier.weights.load import compute_dtype, find_device
from luthier.weights.target import Target, find_target

Array = np.ndarray[Any, Any]


def evaluate(request: dict[str, Any], console: Console) -> None:
    """Score and print; request: {"target", "channels", "kind", "shots", "device", "hyperparameters", "score_rows",
    "json", "out"}. The test channel is scored if there is one, else validation, else all rows of training.
    """
    notes = Console(stderr=True) if request.get("json") else console
    target = find_target(request["target"], lambda text: notes.print(text, highlight=False))
    values = _settings(target, request.get("hyperparameters") or {})
    set_threads(cast("int | None", values["preprocessing_num_workers"]))
    tokenizer = Tokenizer.load(target.base, target.chat_template)
    prepared = _prepare(target, request, values, tokenizer)
    rows, pool, split = _splits(prepared)
    device = find_device(request.get("device", "auto"))
    model = target.load(device, target.dtype or compute_dtype(precision(values), device))
    settings = ScoreSettings(
        int(request.get("score_rows", -1)), int(values["train_data_split_seed"] or 0),
        int(values["per_device_eval_batch_size"] or 1), bool(values["packing"]),
    )  # fmt: skip
    shots = int(request.get("shots") or 0)
    with tempfile.TemporaryDirectory() as folder:
        data: Rows = prepared
        if shots:
            pool, rows = _apart(pool, rows, shots, settings.seed)
            examples = draw_shots(prepared, pool, shots, settings.seed)
            data = ShotRows(prepared, tokenizer, rows, examples, Path(folder), model.context_length)
            rows = data.rows
        held_out = HeldOut(data, tokenizer, rows, settings)
        scores = Path(request["out"] or folder) / "scores.jsonl"
        with _bar(notes, len(rows), split) as bar:
            task = bar.add_task("", total=held_out.work)
            held_out.score(model, scores, lambda done: bar.advance(task, done))
        metrics = summarise(scores)
    metrics["notes"] = [*prepared.warnings, *metrics["notes"]]
    _show(request, console, metrics, target.name + (f", {shots} examples in the prompt" if shots else ""), split)


def _settings(target: Target, given: dict[str, Any]) -> Hyperparameters:
    """The run's own settings, or the model family's defaults, with what was given on top."""
    if target.provenance:
        return parse(given, target.provenance["settings"])
    return parse_for(target.entry, given)


def _prepare(target: Target, request: dict[str, Any], values: Hyperparameters, tokenizer: Tokenizer) -> Dataset:
    channels = {name: Path(path) for name, path in request["channels"].items()}
    stored = target.provenance.get("template")
    trained_kind = target.provenance.get("kind")
    asked = request.get("kind") or "auto"
    if trained_kind and asked == "auto":
        kind = str(trained_kind)
    else:
        kind = resolve_kind(asked, values, values.explicit, channels["training"])
    positions = context_length(target.base, target.entry)
    settings = DataSettings.from_hyperparameters(kind, values, frozenset(), target.entry, positions)
    settings = settings.scoring_only(Template.from_json(stored) if stored else None)
    return prepare(channels, settings, tokenizer, cache_root())


def _splits(prepared: Dataset) -> tuple[Array, Array, str]:
    """Rows to score, rows that examples may come from, and the split's name."""
    splits = prepared.split
    for name, rows in (("test", splits.test), ("validation", splits.validation)):
        if len(rows):
            return rows, splits.train, name
    if not len(splits.train):
        raise UserError("no row is left to score")
    return splits.train, splits.train, "given"


def _apart(pool: Array, rows: Array, shots: int, seed: int) -> tuple[Array, Array]:
    """Keep examples and scored rows apart when they come from the same folder."""
    if pool is not rows:
        return pool, rows
    if shots >= len(rows):
        raise SettingError(f"--shots {shots}: of {len(rows)} rows none would be left to score; ask for fewer")
    taken = np.random.default_rng(seed).permutation(rows)[:shots]
    return np.sort(taken), np.setdiff1d(rows, taken)


def _bar(console: Console, count: int, split: str) -> Progress:
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
    shown = {"tuned": metrics, "labels": {"tuned": name}, "split": split}
    console.print(before_after_table(shown | {key: metrics[key] for key in ("rows", "scored_by_generation")}))
    for note in metrics["notes"]:
        console.print(f"[yellow]note:[/] {escape(note)}", highlight=False)
