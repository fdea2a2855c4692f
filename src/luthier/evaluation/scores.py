"""The per-row scores of one model on held-out rows, read from a file as columns of numbers.

    {"row": "a.jsonl:7", "loss_sum": 3.1, "tokens": 5, "correct": 4, "prompt": "...", "reference": "Positive",
     "prediction": "Positive", "truncated_generation": false}

The file is streamed, one line at a time; of the texts only hashes and scores are kept, about 120 bytes a row.
Does not know how the scores came to be, nor that there is a second model to compare with.
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
from luthier.evaluation.generation import exact_match
from luthier.evaluation.rouge import ROUGE_NAMES, Rouge, was_cut

Array = np.ndarray[Any, Any]
TEXT_COLUMNS = (*ROUGE_NAMES, "exact_match")


@dataclass(frozen=True, slots=True)
class Scores:
    """R rows in the order of the file.

    row, reference, prediction: (R,) uint64 hashes of the row id and of the stripped texts; generated: (R,) bool;
    loss_sum: (R,) nats over the completion tokens; tokens, correct: (R,) counts; texts: (R, 5) float64 0..1 in
    the order of TEXT_COLUMNS, 0 where not generated; unfinished: generations that ran into the token limit;
    cut: rows whose texts were too long for ROUGE to compare in full.
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
    unfinished: int
    cut: int

    def __len__(self) -> int:
        return len(self.row)

    def take(self, order: Array) -> Scores:
        """The same rows in another order."""
        names = ("row", "reference", "prediction", "generated", "loss_sum", "tokens", "correct", "texts")
        return replace(self, **{name: getattr(self, name)[order] for name in names})


def score_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Stream the rows of a scores file; RunFolderError naming the line that is not one."""
    if not path.is_file():
        raise RunFolderError(f"{path}: no such scores file; score the run first")
    with open(path, encoding="utf-8", newline="\n") as handle:
        for number, line in enumerate(handle, 1):
            try:
                row = json.loads(line)
                _check(row)
            except (ValueError, KeyError, TypeError) as error:
                raise RunFolderError(
                    f"{path}:{number}: not a row of scores ({type(error).__name__}: {error}); "
                    "delete this file and score the run again"
                ) from None
            yield row


def _check(row: dict[str, Any]) -> None:
    """Raise ValueError, KeyError or TypeError unless `row` has the fields that are read here."""
    row["prediction"]
    for name, kind in (("row", str), ("reference", str), ("loss_sum", int | float), ("tokens", int), ("correct", int)):
        if not isinstance(row[name], kind):
            raise TypeError(f"{name} is {row[name]!r:.40}")


def read_scores(path: Path) -> Scores:
    """Read a scores file, computing ROUGE and exact match of each generated row on the way."""
    rouge = Rouge()
    hashes, numbers, texts, generated = array("Q"), array("d"), array("d"), bytearray()
    unfinished = cut = 0
    for row in score_lines(path):
        prediction, reference = row["prediction"], row["reference"]
        hashes.extend((text_hash(row["row"]), text_hash(reference.strip()), text_hash((prediction or "").strip())))
        numbers.extend((float(row["loss_sum"]), float(row["tokens"]), float(row["correct"])))
        generated.append(prediction is not None)
        if prediction is None:
            texts.extend([0.0] * len(TEXT_COLUMNS))
            continue
        texts.extend((*rouge.score(prediction, reference), float(exact_match(prediction, reference))))
        unfinished += bool(row.get("truncated_generation"))
        cut += was_cut(prediction, reference)
    rows = len(generated)
    row_hashes = np.array(hashes, dtype=np.uint64).reshape(rows, 3)
    counts = np.array(numbers, dtype=np.float64).reshape(rows, 3)
    return Scores(
        path=path,
        row=row_hashes[:, 0],
        reference=row_hashes[:, 1],
        prediction=row_hashes[:, 2],
        generated=np.frombuffer(bytes(generated), dtype=np.bool_),
        loss_sum=counts[:, 0],
        tokens=counts[:, 1],
        correct=counts[:, 2],
        texts=np.array(texts, dtype=np.float64).reshape(rows, len(TEXT_COLUMNS)),
        unfinished=unfinished,
        cut=cut,
    )


def paired(base: Scores, tuned: Scores) -> tuple[Scores, Scores]:
    """Bring `tuned` into the order of `base`; RunFolderError unless both hold the same rows and references."""
    if not np.array_equal(base.row, tuned.row):
        # Stable sorts pair the k-th occurrence of an id with the k-th, should an id occur twice.
        base_order, tuned_order = np.argsort(base.row, kind="stable"), np.argsort(tuned.row, kind="stable")
        if not np.array_equal(base.row[base_order], tuned.row[tuned_order]):
            raise RunFolderError(_mismatch(base, tuned))
        order = np.empty(len(base), dtype=np.int64)
        order[base_order] = tuned_order
        tuned = tuned.take(order)
    other = np.flatnonzero(base.reference != tuned.reference)
    if len(other):
        raise RunFolderError(
            f"{tuned.path}: row {row_id(base.path, base.row[other[0]])} has another reference than in {base.path}; "
            "both models must be scored on the same data: score the run again"
        )
    return base, tuned


def text_hash(text: str) -> int:
    """64 bits of a text: equal texts agree; two of a million different ones collide with chance 3e-8."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def row_id(path: Path, wanted: int) -> str:
    """The id of the row with this hash, found by reading the file once more."""
    return next((row["row"] for row in score_lines(path) if text_hash(row["row"]) == int(wanted)), "?")


def _mismatch(base: Scores, tuned: Scores) -> str:
    text = f"{base.path} and {tuned.path} hold different rows ({len(base):,} and {len(tuned):,})"
    for here, there in ((base, tuned), (tuned, base)):
        missing = np.setdiff1d(here.row, there.row)
        if len(missing):
            text += f"; {row_id(here.path, missing[0])} is missing in {there.path.name}"
            break
    return text + "; both models must be scored on the same data: score the run again"
