"""Which held-out rows the report shows: a few that improved most, a few that got worse, a few at random.

Rows are chosen by per-row numbers alone (see scores.py); only the chosen rows' texts are then read, each cut to what
a page can show. Does not know how a page looks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from luthier.evaluation.scores import TEXT_COLUMNS, Scores, paired, read_scores, score_lines, text_hash

EACH = 4
LONGEST_SHOWN = 6_000

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Sample:
    """One row under both models. Texts are cut to LONGEST_SHOWN characters; `cut` holds how many are not shown."""

    row: str
    prompt: str
    reference: str
    base: str | None
    tuned: str | None
    base_numbers: dict[str, float | None]
    tuned_numbers: dict[str, float | None]
    cut: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Samples:
    """`improved_rows` and `worse_rows` count all rows that moved, not only the ones shown."""

    groups: dict[str, list[Sample]]
    improved_rows: int
    worse_rows: int
    rows: int
    by_generation: bool


def choose_samples(base_path: Path, tuned_path: Path, seed: int = 0, each: int = EACH) -> Samples:
    """Choose up to `each` rows a group: "improved", "worse", "random"; no row is shown twice.

    Rows with a generated text go by exact match, then ROUGE-L, then loss; where there is none, by loss alone.
    """
    base, tuned = paired(read_scores(base_path), read_scores(tuned_path))
    generated = base.generated & tuned.generated
    by_generation = bool(generated.any())
    rows = np.flatnonzero(generated) if by_generation else np.arange(len(base))
    gain = _gain(base, tuned)[rows]
    order = rows[np.argsort(gain, kind="stable")]
    worse, improved = int((gain < 0).sum()), int((gain > 0).sum())
    chosen = {
        "improved": order[::-1][: min(each, improved)],
        "worse": order[: min(each, worse)],
    }
    rest = np.setdiff1d(rows, np.concatenate(list(chosen.values())))
    chosen["random"] = np.random.default_rng(seed).permutation(rest)[:each]
    texts = _texts(base, tuned, {int(row) for group in chosen.values() for row in group})
    groups = {name: [texts[int(row)] for row in group] for name, group in chosen.items()}
    return Samples(groups, improved, worse, len(rows), by_generation)


def _gain(base: Scores, tuned: Scores) -> Array:
    """How much better each row got (R,): a hit won counts more than any ROUGE-L, that more than any loss."""
    change = tuned.texts - base.texts
    exact, rouge = change[:, TEXT_COLUMNS.index("exact_match")], change[:, TEXT_COLUMNS.index("rougeL")]
    with np.errstate(invalid="ignore", over="ignore"):
        nats = _row_loss(base) - _row_loss(tuned)
        likelihood = np.tanh(np.nan_to_num(nats, posinf=0.0, neginf=0.0))
    if not (base.generated & tuned.generated).any():
        return np.asarray(likelihood)
    # Rows whose text did not change in worth did not move: a lower loss behind the same answer is no sample to show.
    moved = (exact != 0) | (np.abs(rouge) > 1e-9)
    return np.where(moved, 100 * exact + 10 * rouge + likelihood, 0.0)


def _row_loss(scores: Scores) -> Array:
    return np.divide(scores.loss_sum, scores.tokens, out=np.zeros(len(scores)), where=scores.tokens > 0)


def _texts(base: Scores, tuned: Scores, wanted: set[int]) -> dict[int, Sample]:
    """Read the wanted rows (positions in `base`) from both files; all others are only passed over."""
    found: dict[int, dict[str, dict[str, Any]]] = {int(base.row[position]): {} for position in wanted}
    for model, scores in (("base", base), ("tuned", tuned)):
        for line in score_lines(scores.path):
            models = found.get(text_hash(line["row"]))
            if models is not None:
                models.setdefault(model, line)  # an id that occurs twice shows its first row
    return {position: _sample(found[int(base.row[position])], base, tuned, position) for position in wanted}


def _sample(models: dict[str, dict[str, Any]], base: Scores, tuned: Scores, position: int) -> Sample:
    base_line, tuned_line = models["base"], models["tuned"]
    texts: dict[str, str | None] = {
        "prompt": base_line.get("prompt") or "",
        "reference": base_line["reference"],
        "base": base_line["prediction"],
        "tuned": tuned_line["prediction"],
    }
    return Sample(
        row=str(base_line["row"]),
        prompt=(texts["prompt"] or "")[:LONGEST_SHOWN],
        reference=(texts["reference"] or "")[:LONGEST_SHOWN],
        base=None if texts["base"] is None else texts["base"][:LONGEST_SHOWN],
        tuned=None if texts["tuned"] is None else texts["tuned"][:LONGEST_SHOWN],
        base_numbers=_numbers(base, position),
        tuned_numbers=_numbers(tuned, position),
        cut={name: len(text) - LONGEST_SHOWN for name, text in texts.items() if text and len(text) > LONGEST_SHOWN},
    )


def _numbers(scores: Scores, position: int) -> dict[str, float | None]:
    tokens = float(scores.tokens[position])
    loss = float(scores.loss_sum[position]) / tokens if tokens else float("nan")
    numbers: dict[str, float | None] = {"loss": loss if np.isfinite(loss) else None}
    for name, value in zip(TEXT_COLUMNS, scores.texts[position], strict=True):
        numbers[name] = float(value) if scores.generated[position] else None
    return numbers
