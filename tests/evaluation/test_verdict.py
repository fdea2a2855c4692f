"""Words and numbers for people."""

from __future__ import annotations

import pytest

from luthier.catalog.metrics import METRICS
from luthier.evaluation.verdict import format_interval, format_metric, judge_difference


@pytest.mark.parametrize(
    ("name", "value", "low", "high", "rows", "expected"),
    [
        ("loss", -1.0, -1.2, -0.8, 100, "better"),
        ("loss", 1.0, 0.8, 1.2, 100, "worse"),
        ("exact_match", 0.4, 0.3, 0.5, 100, "better"),
        ("exact_match", -0.4, -0.5, -0.3, 100, "worse"),
        ("exact_match", 0.1, -0.1, 0.3, 100, "unclear"),
        ("exact_match", 0.1, 0.0, 0.2, 100, "unclear"),
        ("exact_match", 0.9, 0.8, 1.0, 5, "unclear"),
        ("exact_match", 0.9, None, None, 100, "unclear"),
        ("rouge1", 0.0, 0.0, 0.0, 100, "unchanged"),
        ("rouge1", None, None, None, 100, "not measured"),
    ],
)
def test_verdict(
    name: str, value: float | None, low: float | None, high: float | None, rows: int, expected: str
) -> None:
    assert judge_difference(name, {"value": value, "low": low, "high": high}, rows) == expected
    assert judge_difference(name, None, rows) == "not measured"


def test_names_are_the_contract() -> None:
    assert list(METRICS) == [
        "loss",
        "perplexity",
        "token_accuracy",
        "rouge1",
        "rouge2",
        "rougeL",
        "rougeLsum",
        "exact_match",
        "answer_match",
        "json_match",
        "f1",
    ]


@pytest.mark.parametrize(
    ("value", "signed", "text"),
    [
        (None, False, "–"),
        (0.12345, False, "0.123"),
        (-0.5, True, "−0.500"),
        (0.5, True, "+0.500"),
        (123.456, False, "123.5"),
        (12345.6, False, "12,346"),
        (1.5e7, False, "1.50e+07"),
    ],
)
def test_shown(value: float | None, signed: bool, text: str) -> None:
    assert format_metric(value, signed) == text


def test_shown_interval() -> None:
    assert format_interval({"value": 1, "low": -0.1, "high": 0.2}) == "−0.100 … +0.200"
    assert format_interval({"value": 1, "low": None, "high": None}) == "–"
    assert format_interval(None) == "–"
