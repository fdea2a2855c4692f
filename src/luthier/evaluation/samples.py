"""Chooses the held-out rows that the report shows: most improved, worst regressions, and random ones.

Rows are chosen by their scores (see scores.py); only then are the texts of the chosen rows read, each truncated.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from luthier.evaluation.scores import TEXT_COLUMNS, RowScores, align_rows, read_scores, score_lines, text_hash

GROUP_ROWS = 4
MAX_CHARACTERS = 6_000

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRow:
    """One row with the texts and scores of both models.

    Texts are truncated to MAX_CHARACTERS; `omitted`: characters not shown, by text.
    """

    row: str
    prompt: str
    reference: str
    base: str | None
    tuned: str | None
    base_scores: dict[str, float | None]
    tuned_scores: dict[str, float | None]
    omitted: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRows:
    """The rows to show by group; the counts are over all rows."""

    groups: dict[str, list[SampleRow]]
    improved_rows: int
    worse_rows: int
    rows: int
    by_generation: bool


def choose_sample_rows(base_path: Path, tuned_path: Path) -> SampleRows:
    """Choose up to GROUP_ROWS rows per group: "improved", "worse", "random". No row is in two groups.

    Rows with a generated text are ranked by exact match, then ROUGE-L, then loss; if no row has one, by loss.
    """
    base, tuned = align_rows(read_scores(base_path), read_scores(tuned_path))
    generated = base.generated & tuned.generated
    by_generation = bool(generated.any())
    rows = np.flatnonzero(generated) if by_generation else np.arange(len(base))
    gains = _gains(base, tuned)[rows]
    order = rows[np.argsort(gains, kind="stable")]
    worse, improved = int((gains < 0).sum()), int((gains > 0).sum())
    chosen = {"improved": order[::-1][: min(GROUP_ROWS, improved)], "worse": order[: min(GROUP_ROWS, worse)]}
    rest = np.setdiff1d(rows, np.concatenate(list(chosen.values())))
    chosen["random"] = np.random.default_rng(0).permutation(rest)[:GROUP_ROWS]
    samples = _read_samples(base, tuned, {int(row) for group in chosen.values() for row in group})
    groups = {name: [samples[int(row)] for row in group] for name, group in chosen.items()}
    return SampleRows(groups=groups, improved_rows=improved, worse_rows=worse, rows=len(rows),
                      by_generation=by_generation)  # fmt: skip


def _gains(base: RowScores, tuned: RowScores) -> Array:
    """Improvement of each row (R,): exact match outweighs any change of ROUGE-L, which outweighs any change of loss."""
    change = tuned.texts - base.texts
    exact, rouge = change[:, TEXT_COLUMNS.index("exact_match")], change[:, TEXT_COLUMNS.index("rougeL")]
    with np.errstate(invalid="ignore", over="ignore"):
        nats = _row_loss(base) - _row_loss(tuned)
        likelihood = np.tanh(np.nan_to_num(nats, posinf=0.0, neginf=0.0))
    if not (base.generated & tuned.generated).any():
        return np.asarray(likelihood)
    # A lower loss behind an equally good text is not worth showing as an improvement.
    text_changed = (exact != 0) | (np.abs(rouge) > 1e-9)
    return np.where(text_changed, 100 * exact + 10 * rouge + likelihood, 0.0)


def _row_loss(scores: RowScores) -> Array:
    return np.divide(scores.loss_sum, scores.tokens, out=np.zeros(len(scores)), where=scores.tokens > 0)


def _read_samples(base: RowScores, tuned: RowScores, positions: set[int]) -> dict[int, SampleRow]:
    """Read the rows at `positions` (in `base`) from both scores files."""
    lines: dict[int, dict[str, dict[str, Any]]] = {int(base.row[position]): {} for position in positions}
    for model, scores in (("base", base), ("tuned", tuned)):
        for line in score_lines(scores.path):
            by_model = lines.get(text_hash(line["row"]))
            if by_model is not None:
                by_model.setdefault(model, line)  # of a repeated id, the first row
    return {position: _sample(lines[int(base.row[position])], base, tuned, position) for position in positions}


def _sample(by_model: dict[str, dict[str, Any]], base: RowScores, tuned: RowScores, position: int) -> SampleRow:
    base_line, tuned_line = by_model["base"], by_model["tuned"]
    texts: dict[str, str | None] = {
        "prompt": base_line.get("prompt") or "",
        "reference": base_line["reference"],
        "base": base_line["prediction"],
        "tuned": tuned_line["prediction"],
    }
    return SampleRow(
        row=str(base_line["row"]),
        prompt=(texts["prompt"] or "")[:MAX_CHARACTERS],
        reference=(texts["reference"] or "")[:MAX_CHARACTERS],
        base=None if texts["base"] is None else texts["base"][:MAX_CHARACTERS],
        tuned=None if texts["tuned"] is None else texts["tuned"][:MAX_CHARACTERS],
        base_scores=_row_metrics(base, position),
        tuned_scores=_row_metrics(tuned, position),
        omitted={
            name: len(text) - MAX_CHARACTERS for name, text in texts.items() if text and len(text) > MAX_CHARACTERS
        },
    )


def _row_metrics(scores: RowScores, position: int) -> dict[str, float | None]:
    tokens = float(scores.tokens[position])
    loss = float(scores.loss_sum[position]) / tokens if tokens else float("nan")
    metrics: dict[str, float | None] = {"loss": loss if np.isfinite(loss) else None}
    for name, value in zip(TEXT_COLUMNS, scores.texts[position], strict=True):
        metrics[name] = float(value) if scores.generated[position] else None
    return metrics
