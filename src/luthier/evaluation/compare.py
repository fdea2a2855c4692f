"""Compares base and tuned model on the same held-out rows: metrics of both, and each difference with its interval.

Token-weighted metrics are ratios of sums over rows (loss = sum of nats / sum of completion tokens). Text metrics are
means over the rows for which a text was generated. A metric that does not apply is None, never 0. Input: per-row
scores files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from luthier.catalog.metrics import METRICS
from luthier.errors import DataError, NoGeneratedTextError, Problem
from luthier.evaluation.bootstrap import RESAMPLES, percentile_interval, resampled_counts, resampled_sums
from luthier.evaluation.rouge import MAX_TEXT_CHARACTERS
from luthier.evaluation.scores import TEXT_COLUMNS, RowScores, align_rows, read_scores
from luthier.evaluation.text_metrics import MAX_LABELS, label_confusion, macro_f1
from luthier.evaluation.verdict import MIN_ROWS, TEXT_METRICS, exact_match_lags, format_metric

Array = np.ndarray[Any, Any]
Metrics = dict[str, float | None]


def compute_metrics(scores: Path, answer_pattern: str = "") -> dict[str, Any]:
    """Return one model's metrics: an entry per name in METRICS (None: not applicable), "rows" and
    "scored_by_generation" (counts), and "notes" (a list of lines). Raises as `compare`.
    """
    rows = read_scores(scores, answer_pattern)
    _check_references(rows)
    _check_predictions(rows, "the model")
    return {
        **_metrics(rows, rows.generated),
        "rows": len(rows),
        "scored_by_generation": int(rows.generated.sum()),
        "notes": _notes({"the model": rows}),
    }


def compare(base: Path, tuned: Path, seed: int = 0, answer_pattern: str = "") -> dict[str, Any]:
    """Compare two scores files of the same rows, in any order.

    Returns {"rows", "scored_by_generation", "empty_generations": {"base", "tuned"}, "base": metrics, "tuned": metrics,
    "difference": {name: {"value", "low", "high"} or None}, "notes"}. A difference is tuned minus base with its paired
    bootstrap 95 % interval; low and high are None if fewer than two rows were measured. Deterministic for a seed.
    Raises DataError if the references of all generated rows are empty, NoGeneratedTextError if the tuned model's texts
    are (MIN_ROWS or more).
    """
    base_scores, tuned_scores = align_rows(read_scores(base, answer_pattern), read_scores(tuned, answer_pattern))
    _check_references(tuned_scores)
    _check_predictions(tuned_scores, "the tuned model")
    generated = base_scores.generated & tuned_scores.generated
    base_metrics, tuned_metrics = _metrics(base_scores, generated), _metrics(tuned_scores, generated)
    intervals = _likelihood_intervals(base_scores, tuned_scores, seed)
    intervals |= _text_intervals(base_scores, tuned_scores, generated, seed)
    difference: dict[str, Any] = {}
    for name in METRICS:
        before, after = base_metrics[name], tuned_metrics[name]
        low, high = intervals.get(name, (None, None))
        difference[name] = (
            None if before is None or after is None else {"value": after - before, "low": low, "high": high}
        )
    result: dict[str, Any] = {
        "rows": len(base_scores),
        "scored_by_generation": int(generated.sum()),
        "empty_generations": {"base": base_scores.empty_predictions, "tuned": tuned_scores.empty_predictions},
        "base": base_metrics,
        "tuned": tuned_metrics,
        "difference": difference,
        "notes": _notes({"the base model": base_scores, "the tuned model": tuned_scores}),
    }
    if exact_match_lags(result):
        values = f"{format_metric(base_metrics['exact_match'])} to {format_metric(tuned_metrics['exact_match'])}"
        result["notes"].append(f"ROUGE is better, exact match is not ({values}): shared words are not right answers")
    return result


def _check_references(scores: RowScores) -> None:
    rows = int(scores.generated.sum())
    if rows and scores.empty_references == rows:
        raise no_references(rows, str(scores.path))


def no_references(rows: int, file: str = "") -> DataError:
    """The error of `rows` held-out rows, all of which have an empty reference."""
    return DataError(Problem(file, 0, (
        f"the references of all {rows:,} rows scored by generation are empty, so no answer could be right; expected "
        "text in the completions (`luthier inspect` shows them as they are rendered); --score-rows 0 scores losses only"
    )))  # fmt: skip


def _check_predictions(scores: RowScores, name: str) -> None:
    """Fewer than MIN_ROWS empty texts are no error: there is no verdict on so few rows, and the notes count them."""
    rows = int(scores.generated.sum())
    if rows >= MIN_ROWS and scores.empty_predictions == rows:
        raise NoGeneratedTextError(
            f"{name} generated an empty text for all {rows:,} rows scored by generation, so there is nothing to "
            "compare: its first token ends the text; check how completions begin (`luthier inspect` shows them as they "
            "are rendered), or train longer or with another learning_rate; --score-rows 0 scores losses only"
        )


def _metrics(scores: RowScores, generated: Array) -> Metrics:
    """All metrics of one model; text metrics over the rows marked in `generated` (R,)."""
    sums = np.array([[scores.loss_sum.sum(), scores.tokens.sum(), scores.correct.sum()]])
    metrics: Metrics = {name: _finite_or_none(values[0]) for name, values in _likelihood(sums).items()}
    rows = int(generated.sum())
    if not rows:
        return metrics | dict.fromkeys(TEXT_METRICS)
    metrics |= dict(zip(TEXT_COLUMNS, (float(mean) for mean in scores.texts[generated].mean(axis=0)), strict=True))
    metrics |= dict.fromkeys(scores.inapplicable)
    confusion = _confusion(scores, generated)
    return metrics | {"f1": None if confusion is None else _single_f1(confusion)}


def _likelihood(sums: Array) -> dict[str, Array]:
    """sums: (B, 3) of nats, completion tokens, correct tokens -> each metric (B,); NaN without tokens."""
    nats, tokens, correct = sums.T
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        loss = nats / tokens
        return {"loss": loss, "perplexity": np.exp(loss), "token_accuracy": correct / tokens}


def _likelihood_intervals(base: RowScores, tuned: RowScores, seed: int) -> dict[str, tuple[float | None, float | None]]:
    if len(base) < 2:
        return {}
    columns = np.stack([base.loss_sum, base.tokens, base.correct, tuned.loss_sum, tuned.tokens, tuned.correct], axis=1)
    sums = resampled_sums(columns, np.random.default_rng(seed))
    before, after = _likelihood(sums[:, :3]), _likelihood(sums[:, 3:])
    with np.errstate(invalid="ignore"):
        return {name: percentile_interval(after[name] - before[name]) for name in before}


def _text_intervals(
    base: RowScores, tuned: RowScores, generated: Array, seed: int
) -> dict[str, tuple[float | None, float | None]]:
    rows = int(generated.sum())
    if rows < 2:
        return {}
    change = tuned.texts[generated] - base.texts[generated]
    means = resampled_sums(change, np.random.default_rng(seed + 1)) / rows
    intervals = {name: percentile_interval(means[:, index]) for index, name in enumerate(TEXT_COLUMNS)}
    before, after = _confusion(base, generated), _confusion(tuned, generated)
    if before is None or after is None:
        return intervals
    # Categories: (reference class, class predicted by base, class predicted by tuned); at most 20 x 21 x 21.
    categories, sizes = np.unique(np.column_stack([before, after[:, 1]]), axis=0, return_counts=True)
    counts = resampled_counts(sizes, np.random.default_rng(seed + 2), RESAMPLES)
    difference = _f1(categories[:, [0, 2]], counts) - _f1(categories[:, [0, 1]], counts)
    return intervals | {"f1": percentile_interval(difference)}


def _confusion(scores: RowScores, generated: Array) -> Array | None:
    """Classes of the generated rows; None if the references of all rows, generated or not, are free text."""
    if len(np.unique(scores.reference)) > MAX_LABELS:
        return None
    return label_confusion(scores.reference[generated], scores.prediction[generated])


def _single_f1(confusion: Array) -> float:
    cells, counts = np.unique(confusion, axis=0, return_counts=True)
    return float(_f1(cells, counts[None, :])[0])


def _f1(cells: Array, counts: Array) -> Array:
    """cells: (K, 2) reference and predicted class; counts: (B, K) rows per cell -> macro F1 (B,)."""
    references, predictions = cells.T
    classes = np.arange(int(references.max()) + 1)
    is_reference = (references[:, None] == classes).astype(np.float64)
    is_prediction = (predictions[:, None] == classes).astype(np.float64)
    return macro_f1(counts @ (is_reference * is_prediction), counts @ is_reference, counts @ is_prediction)


def _finite_or_none(value: float) -> float | None:
    """JSON has no NaN (no tokens) and no infinities (reported in the notes): both become None."""
    return float(value) if np.isfinite(value) else None


def _notes(models: dict[str, RowScores]) -> list[str]:
    """One line for each reason to read the numbers with care."""
    notes: list[str] = []
    both = list(models.values())
    generated = min(int(scores.generated.sum()) for scores in both)
    rows = len(both[0])
    if 0 < generated < rows:
        notes.append(f"ROUGE, exact match and F1 cover the {generated:,} of {rows:,} rows with a generated text")
    for name, scores in models.items():
        undefined = int((~np.isfinite(scores.loss_sum)).sum())
        if undefined:
            notes.append(f"{undefined:,} rows have a non-finite loss under {name}; its loss and perplexity are null")
        if scores.unfinished:
            notes.append(f"{scores.unfinished:,} generations of {name} were truncated at the token limit")
        if scores.empty_predictions:
            notes.append(f"{scores.empty_predictions:,} generations of {name} are empty; an empty text matches nothing")
    if both[0].unanswered:
        notes.append(
            f"answer_pattern finds no answer in the references of {both[0].unanswered:,} rows, so none matches"
        )
    if both[0].empty_references:
        notes.append(f"{both[0].empty_references:,} rows have an empty reference, which no answer matches")
    truncated = max(scores.truncated for scores in both)
    if truncated:
        limit = f"{MAX_TEXT_CHARACTERS:,} characters"
        notes.append(f"{truncated:,} rows have a text longer than {limit}; ROUGE compares the first {limit} only")
    if len(both) == 2:
        uneven = int((both[0].tokens != both[1].tokens).sum())
        if uneven:
            notes.append(
                f"{uneven:,} rows have different completion token counts for base and tuned: losses not comparable"
            )
    return notes
