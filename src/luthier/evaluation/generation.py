"""What a generated text is worth beside its reference: exact match, and macro F1 where the references are labels.

ROUGE is in rouge.py. Works on texts and counts; does not generate, and does not know of files or models.
"""

from __future__ import annotations

from typing import Any

import numpy as np

MOST_LABELS = 20
"""F1 is for classification: more distinct references than this are free text, and F1 is not applicable."""

Array = np.ndarray[Any, Any]


def exact_match(prediction: str, reference: str) -> bool:
    """Same text after stripping white space at both ends; case, punctuation and inner spaces count."""
    return prediction.strip() == reference.strip()


def label_confusion(reference: Array, prediction: Array) -> Array | None:
    """Turn the labels of rows into class numbers.

    `reference`, `prediction`: (R,) any values that are equal where the stripped texts are. Returns (R, 2) int64 of
    (reference class, predicted class) with classes 0..C-1; a prediction that is no reference of any row is class
    C: wrong, whatever it says. None where R is 0 or the references have more than MOST_LABELS distinct values.
    """
    labels, classes = np.unique(reference, return_inverse=True)
    if not 0 < len(labels) <= MOST_LABELS:
        return None
    place = np.searchsorted(labels, prediction).clip(max=len(labels) - 1)
    predicted = np.where(labels[place] == prediction, place, len(labels))
    return np.stack([classes.reshape(-1), predicted], axis=1).astype(np.int64)


def macro_f1(hits: Array, references: Array, predictions: Array) -> Array:
    """Mean over classes of F1 = 2 hits / (references + predictions), each count (..., C) -> (...).

    Hits: rows of a class predicted as it; references: rows of it; predictions: rows predicted as it. A class
    that is neither in the references nor predicted has no F1 and is left out; NaN where none is left.
    """
    size = references + predictions
    present = size > 0
    each = np.divide(2.0 * hits, size, out=np.zeros(size.shape), where=present)
    count = present.sum(axis=-1)
    mean: Array = np.divide(each.sum(axis=-1), count, out=np.full(count.shape, np.nan), where=count > 0)
    return mean
