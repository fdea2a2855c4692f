"""Exact match and macro F1, against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from luthier.evaluation.text_metrics import MAX_LABELS, exact_match, label_confusion, macro_f1


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        (" Positive\n", "Positive", True),
        ("positive", "Positive", False),
        ("a  b", "a b", False),
        ("", "  ", False),
        ("", "", False),
        ("\n", "", False),
        ("", "x", False),
        ("\u3000是\u00a0", "是", True),
    ],
)
def test_exact_match(prediction: str, reference: str, expected: bool) -> None:
    assert exact_match(prediction, reference) is expected


def f1(reference: list[str], prediction: list[str]) -> float | None:
    confusion = label_confusion(np.array(reference), np.array(prediction))
    if confusion is None:
        return None
    classes = np.arange(confusion[:, 0].max() + 1)
    references, predictions = confusion[:, :1] == classes, confusion[:, 1:] == classes
    return float(macro_f1((references & predictions).sum(0), references.sum(0), predictions.sum(0)))


def test_macro_f1_by_hand() -> None:
    # a: 2 hits, 3 references, 2 predicted -> 4/5; b: 1 hit, 2 references, 2 predicted -> 2/4;
    # c: 0 hits, 1 reference, 1 predicted -> 0. "zzz" is no label: wrong, and predicted for nobody.
    reference = ["a", "a", "a", "b", "b", "c"]
    prediction = ["a", "a", "b", "b", "c", "zzz"]
    assert f1(reference, prediction) == pytest.approx((0.8 + 0.5 + 0) / 3)


def test_a_prediction_outside_the_labels_lowers_recall_only() -> None:
    assert f1(["a", "a"], ["a", "other"]) == pytest.approx(2 / 3)
    assert f1(["a", "a"], ["x", "y"]) == 0


def test_perfect_is_one() -> None:
    assert f1(["x", "y", "z"], ["x", "y", "z"]) == 1


def test_twenty_labels_are_the_most() -> None:
    labels = [str(number) for number in range(MAX_LABELS)]
    assert f1(labels, labels) == 1
    assert f1([*labels, "one more"], [*labels, "one more"]) is None
    assert label_confusion(np.array([], dtype=np.uint64), np.array([], dtype=np.uint64)) is None


def test_hashes_above_all_labels_are_outside() -> None:
    confusion = label_confusion(np.array([5, 7], dtype=np.uint64), np.array([2**63, 7], dtype=np.uint64))
    assert confusion is not None
    assert confusion.tolist() == [[0, 2], [1, 1]]


def test_macro_f1_leaves_absent_classes_out() -> None:
    hits, references, predictions = np.array([[2, 0], [0, 0]]), np.array([[2, 0], [0, 0]]), np.array([[2, 0], [0, 0]])
    values = macro_f1(hits, references, predictions)
    assert values[0] == 1
    assert np.isnan(values[1])
