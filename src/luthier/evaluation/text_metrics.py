"""Compares generated texts with references: exact match, and macro F1 if the references are labels. ROUGE: rouge.py."""

from __future__ import annotations

from typing import Any

import numpy as np

MAX_LABELS = 20
"""With more distinct references the rows are free text, not classification, and F1 does not apply."""

Array = np.ndarray[Any, Any]


def exact_match(prediction: str, reference: str) -> bool:
    """Whether the texts are equal after stripping outer white space; case, punctuation and inner spaces count.

    An empty text matches nothing, not even an empty reference.
    """
    return prediction.strip() == reference.strip() != ""


def label_confusion(reference: Array, prediction: Array) -> Array | None:
    """Turn the labels of rows into class numbers.

    `reference`, `prediction`: (R,) values that are equal if the stripped texts are equal. Returns (R, 2) int64 of
    (reference class, predicted class) with classes 0..C-1; a prediction that is not the reference of any row is class C
    (always wrong). None if R is 0 or the references have more than MAX_LABELS distinct values.
    """
    labels, classes = np.unique(reference, return_inverse=True)
    if not 0 < len(labels) <= MAX_LABELS:
        return None
    index = np.searchsorted(labels, prediction).clip(max=len(labels) - 1)
    predicted = np.where(labels[index] == prediction, index, len(labels))
    return np.stack([classes.reshape(-1), predicted], axis=1).astype(np.int64)


def macro_f1(hits: Array, references: Array, predictions: Array) -> Array:
    """Mean over classes of F1 = 2 hits / (references + predictions); each count (..., C) -> (...).

    hits: rows of the class predicted correctly; references: rows of the class; predictions: rows predicted as it.
    A class without references and predictions is left out; NaN if no class is left.
    """
    size = references + predictions
    present = size > 0
    scores = np.divide(2.0 * hits, size, out=np.zeros(size.shape), where=present)
    count = present.sum(axis=-1)
    mean: Array = np.divide(scores.sum(axis=-1), count, out=np.full(count.shape, np.nan), where=count > 0)
    return mean
