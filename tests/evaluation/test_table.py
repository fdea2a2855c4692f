"""The before/after table on a terminal."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from luthier.evaluation.table import before_after_table

METRICS: dict[str, Any] = {
    "split": "test",
    "rows": 200,
    "scored_by_generation": 50,
    "base": {"loss": 2.5, "perplexity": 12.18, "exact_match": 0.25, "f1": None},
    "tuned": {"loss": 0.5, "perplexity": 1.65, "exact_match": 0.2, "f1": None},
    "difference": {
        "loss": {"value": -2.0, "low": -2.2, "high": -1.8},
        "perplexity": {"value": -10.53, "low": -11.0, "high": -10.0},
        "exact_match": {"value": -0.05, "low": -0.2, "high": 0.1},
    },
}


def drawn(metrics: dict[str, Any], width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(before_after_table(metrics))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_both_models() -> None:
    text = drawn(METRICS)
    lines = {line.split("  ")[0].strip(): " ".join(line.split()) for line in text.splitlines()}
    assert lines["loss"] == "loss 2.500 0.500 −2.000 −2.200 … −1.800 ↓ better"
    assert lines["exact match"] == "exact match 0.250 0.200 −0.050 −0.200 … +0.100 ↓ unclear"
    assert "F1" not in text
    assert "ROUGE" not in text
    assert "200 held-out rows (test), 50 with generated text; paired bootstrap over rows" in " ".join(text.split())


def test_one_model_alone_with_its_name() -> None:
    text = drawn({"rows": 3, "scored_by_generation": 3, "tuned": METRICS["tuned"], "labels": {"tuned": "my/model"}})
    assert "my/model" in text
    assert "interval" not in text
    assert "0.500" in text


def test_few_rows_decide_nothing() -> None:
    text = drawn(METRICS | {"rows": 4, "scored_by_generation": 4})
    assert "better" not in text
    assert "fewer than 10 rows: too few for a verdict" in " ".join(text.split())


def test_a_missing_difference_is_not_invented() -> None:
    text = drawn(METRICS | {"difference": {}})
    assert "not measured" in text
