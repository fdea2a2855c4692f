"""Reads the per-row scores of one model on held-out rows as columns of numbers.

    {"row": "a.jsonl:7", "loss_sum": 3.1, "tokens": 5, "correct": 4, "prompt": "...", "reference": "Positive",
     "prediction": "Positive", "truncated_generation": false}

The file is streamed; of the texts only hashes and scores are kept, about 120 bytes per row.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from luthier.errors import RunFolderError
from luthier.evaluation.answers import answers_match, ends_in_json, find_answer, json_match
from luthier.evaluation.rouge import ROUGE_NAMES, Rouge, is_truncated
from luthier.evaluation.text_metrics import exact_match

Array = np.ndarray[Any, Any]
TEXT_COLUMNS = (*ROUGE_NAMES, "exact_match", "answer_match", "json_match")
EMPTY_PREDICTION = (1 << 64) - 1
"""Stands for the hash of an empty prediction: it equals no reference, not even an empty one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowScores:
    """Scores of R rows in file order.

    row, reference, prediction: (R,) uint64 hashes of the row id and of the stripped texts; generated: (R,) bool;
    loss_sum: (R,) nats over the completion tokens; tokens, correct: (R,) counts; texts: (R, 7) float64 0..1 in
    the order of TEXT_COLUMNS, 0 if not generated; inapplicable: columns of `texts` without meaning for these rows;
    unanswered: generated rows whose reference has no answer of the pattern; unfinished: generations truncated at the
    token limit; truncated: rows with a text longer than ROUGE compares; empty_references, empty_predictions: generated
    rows without that text.
    """

    path: Path
    row: Array
    reference: Array
    prediction: Array
    generated: Array
    loss_sum: Array
    tokens: Array
    correct: Array
    texts: Array
    inapplicable: frozenset[str]
    unanswered: int
    unfinished: int
    truncated: int
    empty_references: int
    empty_predictions: int

    def __len__(self) -> int:
        return len(self.row)

    def reorder(self, order: Array) -> RowScores:
        """Return the same rows in another order."""
        names = ("row", "reference", "prediction", "generated", "loss_sum", "tokens", "correct", "texts")
        return replace(self, **{name: getattr(self, name)[order] for name in names})


def score_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Stream the rows of a scores file; RunFolderError names the line that is invalid."""
    if not path.is_file():
        raise RunFolderError(f"{path}: scores file not found; score the run first")
    with open(path, encoding="utf-8", newline="\n") as handle:
        for number, line in enumerate(handle, 1):
            try:
                row = json.loads(line)
                _check(row)
            except (ValueError, KeyError, TypeError) as error:
                raise RunFolderError(
                    f"{path}:{number}: invalid scores row ({type(error).__name__}: {error}); "
                    "delete this file and score the run again"
                ) from None
            yield row


def _check(row: dict[str, Any]) -> None:
    """Raise KeyError or TypeError unless `row` has the required fields."""
    row["prediction"]
    for name, kind in (("row", str), ("reference", str), ("loss_sum", int | float), ("tokens", int), ("correct", int)):
        if not isinstance(row[name], kind):
            raise TypeError(f"{name} is {row[name]!r:.40}")


def read_scores(path: Path, answer_pattern: str = "") -> RowScores:
    """Read a scores file and compute the text metrics of each generated row; answer_pattern: see answers.py."""
    rouge = Rouge()
    hashes, numbers, texts, generated = array("Q"), array("d"), array("d"), bytearray()
    unfinished = truncated = empty_references = empty_predictions = unanswered = json_references = 0
    for row in score_lines(path):
        prediction, reference = row["prediction"], row["reference"]
        answer = (prediction or "").strip()
        hashes.extend((text_hash(row["row"]), text_hash(reference.strip()),
                       text_hash(answer) if answer else EMPTY_PREDICTION))  # fmt: skip
        numbers.extend((float(row["loss_sum"]), float(row["tokens"]), float(row["correct"])))
        generated.append(prediction is not None)
        if prediction is None:
            texts.extend([0.0] * len(TEXT_COLUMNS))
            continue
        texts.extend((*rouge.score(prediction, reference), float(exact_match(prediction, reference)),
                      float(bool(answer_pattern) and answers_match(prediction, reference, answer_pattern)),
                      float(json_match(prediction, reference))))  # fmt: skip
        json_references += ends_in_json(reference)
        unanswered += bool(answer_pattern) and find_answer(reference, answer_pattern) is None
        unfinished += bool(row.get("truncated_generation"))
        truncated += is_truncated(prediction, reference)
        empty_references += not reference.strip()
        empty_predictions += not answer
    rows = len(generated)
    row_hashes = np.array(hashes, dtype=np.uint64).reshape(rows, 3)
    is_json = 0 < json_references == sum(generated)
    counts = np.array(numbers, dtype=np.float64).reshape(rows, 3)
    return RowScores(
        path=path,
        row=row_hashes[:, 0],
        reference=row_hashes[:, 1],
        prediction=row_hashes[:, 2],
        generated=np.frombuffer(bytes(generated), dtype=np.bool_),
        loss_sum=counts[:, 0],
        tokens=counts[:, 1],
        correct=counts[:, 2],
        texts=np.array(texts, dtype=np.float64).reshape(rows, len(TEXT_COLUMNS)),
        inapplicable=frozenset(
            name for name, applies in (("answer_match", answer_pattern), ("json_match", is_json)) if not applies
        ),
        unanswered=unanswered,
        unfinished=unfinished,
        truncated=truncated,
        empty_references=empty_references,
        empty_predictions=empty_predictions,
    )


def align_rows(base: RowScores, tuned: RowScores) -> tuple[RowScores, RowScores]:
    """Reorder `tuned` as `base`; RunFolderError unless both have the same rows and references."""
    if not np.array_equal(base.row, tuned.row):
        # Stable sorts pair the k-th occurrence of a repeated id with the k-th.
        base_order, tuned_order = np.argsort(base.row, kind="stable"), np.argsort(tuned.row, kind="stable")
        if not np.array_equal(base.row[base_order], tuned.row[tuned_order]):
            raise RunFolderError(_describe_mismatch(base, tuned))
        order = np.empty(len(base), dtype=np.int64)
        order[base_order] = tuned_order
        tuned = tuned.reorder(order)
    different = np.flatnonzero(base.reference != tuned.reference)
    if len(different):
        raise RunFolderError(
            f"{tuned.path}: row {row_id(base.path, base.row[different[0]])} has a different reference than in "
            f"{base.path}; both models must be scored on the same data: score the run again"
        )
    return base, tuned


def text_hash(text: str) -> int:
    """Hash a text to 64 bits; a million texts have a collision with probability 3e-8."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def row_id(path: Path, row_hash: int) -> str:
    """Return the id of the row with this hash; reads the file again."""
    return next((row["row"] for row in score_lines(path) if text_hash(row["row"]) == int(row_hash)), "?")


def _describe_mismatch(base: RowScores, tuned: RowScores) -> str:
    text = f"{base.path} and {tuned.path} hold different rows ({len(base):,} and {len(tuned):,})"
    for scores, other in ((base, tuned), (tuned, base)):
        missing = np.setdiff1d(scores.row, other.row)
        if len(missing):
            text += f"; {row_id(scores.path, missing[0])} is missing in {other.path.name}"
            break
    return text + "; both models must be scored on the same data: score the run again"
