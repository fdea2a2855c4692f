"""Base against tuned on the same held-out rows: the metrics of both, and each difference with its interval.

Token-weighted metrics are ratios of sums over rows (loss = sum of nats / sum of completion tokens), text metrics
are means over the rows for which a text was generated. Not applicable is None, never 0. Reads per-row scores
files; knows nothing of models or how the rows were scored.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from luthier.catalog.metrics import METRICS
from luthier.evaluation.bootstrap import RESAMPLES, interval, resampled_counts, resampled_sums
from luthier.evaluation.generation import MOST_LABELS, label_confusion, macro_f1
from luthier.evaluation.metric import TEXT_METRICS
from luthier.evaluation.rouge import LONGEST_TEXT
from luthier.evaluation.scores import TEXT_COLUMNS, Scores, paired, read_scores

Array = np.ndarray[Any, Any]
Metrics = dict[str, float | None]


def summarise(scores: Path) -> dict[str, Any]:
    """The metrics of one model: one entry per name in METRICS (None: not applicable), and beside them

    "rows", "scored_by_generation" (counts) and "notes" (a list of lines that a reader must know).
    """
    rows = read_scores(scores)
    return {
        **_metrics(rows, rows.generated),
        "rows": len(rows),
        "scored_by_generation": int(rows.generated.sum()),
        "notes": _notes({"the model": rows}),
    }


def compare(base: Path, tuned: Path, seed: int = 0) -> dict[str, Any]:
    """Compare two scores files of the same rows (in any order).

    Returns {"rows", "scored_by_generation", "base": metrics, "tuned": metrics, "difference": {name: {"value",
    "low", "high"} or None}, "notes"}. A difference is tuned minus base with its paired bootstrap 95 % interval;
    low and high are None where fewer than two rows were measured. Same files and seed: same numbers.
    """
    before, after = paired(read_scores(base), read_scores(tuned))
    generated = before.generated & after.generated
    result_base, result_tuned = _metrics(before, generated), _metrics(after, generated)
    intervals = _likelihood_intervals(before, after, seed) | _text_intervals(before, after, generated, seed)
    difference: dict[str, Any] = {}
    for name in METRICS:
        first, second = result_base[name], result_tuned[name]
        low, high = intervals.get(name, (None, None))
        difference[name] = (
            None if first is None or second is None else {"value": second - first, "low": low, "high": high}
        )
    return {
        "rows": len(before),
        "scored_by_generation": int(generated.sum()),
        "base": result_base,
        "tuned": result_tuned,
        "difference": difference,
        "notes": _notes({"the base model": before, "the tuned model": after}),
    }


def _metrics(scores: Scores, generated: Array) -> Metrics:
    """All metrics of one model; the text metrics over the rows marked in `generated` (R,)."""
    sums = np.array([[scores.loss_sum.sum(), scores.tokens.sum(), scores.correct.sum()]])
    found: Metrics = {name: _number(values[0]) for name, values in _likelihood(sums).items()}
    rows = int(generated.sum())
    if not rows:
        return found | dict.fromkeys(TEXT_METRICS)
    found |= dict(zip(TEXT_COLUMNS, (float(mean) for mean in scores.texts[generated].mean(axis=0)), strict=True))
    confusion = _confusion(scores, generated)
    return found | {"f1": None if confusion is None else float(_f1(*_f1_cells(confusion))[0])}


def _likelihood(sums: Array) -> dict[str, Array]:
    """sums: (B, 3) of nats, completion tokens, tokens guessed right -> each metric (B,); NaN without tokens."""
    nats, tokens, correct = sums.T
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        loss = nats / tokens
        return {"loss": loss, "perplexity": np.exp(loss), "token_accuracy": correct / tokens}


def _likelihood_intervals(base: Scores, tuned: Scores, seed: int) -> dict[str, tuple[float | None, float | None]]:
    if len(base) < 2:
        return {}
    columns = np.stack([base.loss_sum, base.tokens, base.correct, tuned.loss_sum, tuned.tokens, tuned.correct], axis=1)
    sums = resampled_sums(columns, np.random.default_rng(seed))
    before, after = _likelihood(sums[:, :3]), _likelihood(sums[:, 3:])
    with np.errstate(invalid="ignore"):
        return {name: interval(after[name] - before[name]) for name in before}


def _text_intervals(
    base: Scores, tuned: Scores, generated: Array, seed: int
) -> dict[str, tuple[float | None, float | None]]:
    rows = int(generated.sum())
    if rows < 2:
        return {}
    change = tuned.texts[generated] - base.texts[generated]
    means = resampled_sums(change, np.random.default_rng(seed + 1)) / rows
    found = {name: interval(means[:, index]) for index, name in enumerate(TEXT_COLUMNS)}
    before, after = _confusion(base, generated), _confusion(tuned, generated)
    if before is None or after is None:
        return found
    # Kinds of rows: (reference class, class that base predicted, class that tuned predicted); at most 20 x 21 x 21.
    kinds, cells = np.unique(np.column_stack([before, after[:, 1]]), axis=0, return_counts=True)
    counts = resampled_counts(cells, np.random.default_rng(seed + 2), RESAMPLES)
    return found | {"f1": interval(_f1(kinds[:, [0, 2]], counts) - _f1(kinds[:, [0, 1]], counts))}


def _confusion(scores: Scores, generated: Array) -> Array | None:
    """Classes of the generated rows; None where the references of all rows, generated or not, are free text."""
    if len(np.unique(scores.reference)) > MOST_LABELS:
        return None
    return label_confusion(scores.reference[generated], scores.prediction[generated])


def _f1_cells(confusion: Array) -> tuple[Array, Array]:
    cells, counts = np.unique(confusion, axis=0, return_counts=True)
    return cells, counts[None, :]


def _f1(cells: Array, counts: Array) -> Array:
    """cells: (K, 2) reference and predicted class; counts: (B, K) rows of each cell -> macro F1 (B,)."""
    references, predictions = cells.T
    classes = np.arange(int(references.max()) + 1)
    is_reference = (references[:, None] == classes).astype(np.float64)
    is_prediction = (predictions[:, None] == classes).astype(np.float64)
    return macro_f1(counts @ (is_reference * is_prediction), counts @ is_reference, counts @ is_prediction)


def _number(value: float) -> float | None:
    """A number that JSON can hold; None for NaN (no tokens) and infinities (the notes say so)."""
    return float(value) if np.isfinite(value) else None


def _notes(models: dict[str, Scores]) -> list[str]:
    """What a reader of the numbers must know, one line each."""
    notes: list[str] = []
    several = list(models.values())
    generated = min(int(scores.generated.sum()) for scores in several)
    rows = len(several[0])
    if 0 < generated < rows:
        notes.append(f"ROUGE, exact match and F1 are over {generated:,} of the {rows:,} rows: the ones generated for")
    for name, scores in models.items():
        undefined = int((~np.isfinite(scores.loss_sum)).sum())
        if undefined:
            notes.append(f"{undefined:,} rows have no finite loss under {name}: its loss and perplexity are null")
        if scores.unfinished:
            notes.append(f"{scores.unfinished:,} generations of {name} ran into the token limit before they ended")
    cut = max(scores.cut for scores in several)
    if cut:
        notes.append(f"{cut:,} rows are longer than {LONGEST_TEXT:,} characters: ROUGE compares their first ones only")
    if len(several) == 2:
        uneven = int((several[0].tokens != several[1].tokens).sum())
        if uneven:
            notes.append(f"{uneven:,} rows differ in completion tokens between base and tuned: losses do not compare")
    return notes
