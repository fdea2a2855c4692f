"""Answers found by a pattern, and JSON values at the end of a text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.catalog.hyperparameters import parse
from luthier.errors import SettingError
from luthier.evaluation.answers import MAX_STARTS, answers_match, ends_in_json, find_answer, json_match
from luthier.evaluation.compare import compare, compute_metrics
from luthier.evaluation.curves import Curves
from luthier.evaluation.run_summary import summarize_run

GSM8K = r"#### (.+)"
NUMBER = r"-?\d[\d,]*\.?\d*"


@pytest.mark.parametrize(
    ("text", "pattern", "answer"),
    [
        ("48/2 = 24\n#### 72", GSM8K, "72"),
        ("#### 1\n#### 2 ", GSM8K, "2"),
        ("so it is 3, or 4.5", NUMBER, "4.5"),
        ("no number", NUMBER, None),
        ("####  ", GSM8K, None),
        ("Answer: B", r"Answer: ([A-D])|\b([A-D])$", "B"),
        ("", GSM8K, None),
    ],
)
def test_the_last_match_is_the_answer(text: str, pattern: str, answer: str | None) -> None:
    assert find_answer(text, pattern) == answer


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        ("other words #### 72", "#### 72", True),
        ("#### 72.0", "#### 72", True),
        ("#### 1,200", "#### 1200", True),
        ("#### $1,200.", "#### 1200", True),
        ("#### 1,2", "#### 12", False),
        ("#### 73", "#### 72", False),
        ("72", "#### 72", False),
        ("#### blue", "#### blue", True),
        ("#### Blue", "#### blue", False),
        ("#### nan", "#### nan", True),
        ("", "", False),
    ],
)
def test_numbers_are_compared_by_value(prediction: str, reference: str, expected: bool) -> None:
    assert answers_match(prediction, reference, GSM8K) is expected


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        ('{"a": 1, "b": [true, null]}', '{"b":[true,null],"a":1.0}', True),
        ('Here it is:\n```json\n{"a": 1}\n```', '{"a": 1}', True),
        ('{"a": 1}', '{"a": true}', False),
        ('{"a": 1}', '{"a": "1"}', False),
        ("[1, 2]", "[2, 1]", False),
        ('{"a": 1} and more', '{"a": 1}', False),
        ('{"a": 1', '{"a": 1}', False),
        ('{"a": NaN}', '{"a": NaN}', False),
        ("5", "5", False),
        ("", "", False),
        ("x {not json} [1]", "[1]", True),
        ("[" * 100_000 + "]" * 100_000, "[]", False),
    ],
)
def test_json_values_are_compared_by_value(prediction: str, reference: str, expected: bool) -> None:
    assert json_match(prediction, reference) is expected


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**6), 10**6) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=4), JSON, max_size=3) | st.lists(JSON, max_size=3), JSON)
def test_a_value_equals_itself_however_it_is_written(value: Any, other: Any) -> None:
    plain = json.dumps(value)
    if sum(plain.count(sign) for sign in "{[") < MAX_STARTS:
        assert json_match(f"The answer: {json.dumps(value, indent=2, ensure_ascii=False)}\n", plain)
    wrapped = json.dumps([value, other])
    assert json_match(wrapped, plain) is False or wrapped == plain


def write(path: Path, pairs: list[tuple[str, str | None]]) -> Path:
    rows = [{"row": f"r:{row}", "loss_sum": 1.0, "tokens": 2, "correct": 1, "prompt": "p", "reference": reference,
             "prediction": prediction} for row, (reference, prediction) in enumerate(pairs)]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def test_answers_are_a_metric_where_there_is_a_pattern(tmp_path: Path) -> None:
    scores = write(tmp_path / "s", [("1+1 #### 2", "it is #### 2"), ("#### 3", "#### 4"), ("none", "#### 5")])
    assert compute_metrics(scores)["answer_match"] is None
    metrics = compute_metrics(scores, GSM8K)
    assert metrics["answer_match"] == pytest.approx(1 / 3)
    assert metrics["exact_match"] == 0
    assert "answer_pattern finds no answer in the references of 1 rows, so none matches" in metrics["notes"]


def test_json_is_a_metric_where_all_references_end_in_it(tmp_path: Path) -> None:
    pairs: list[tuple[str, str | None]] = [('{"a": 1}', '{"a":1}'), ('{"a": 2}', '{"a": 1}')]
    assert compute_metrics(write(tmp_path / "s", pairs))["json_match"] == 0.5
    assert compute_metrics(write(tmp_path / "t", [*pairs, ("not generated", None)]))["json_match"] == 0.5
    assert compute_metrics(write(tmp_path / "u", [*pairs, ("text", "{}")]))["json_match"] is None
    assert not ends_in_json("text")


def test_a_better_answer_is_the_headline(tmp_path: Path) -> None:
    base = write(tmp_path / "b", [(f"#### {row}", "#### x") for row in range(30)])
    tuned = write(tmp_path / "t", [(f"#### {row}", f"so #### {row}.0" if row % 3 else "?") for row in range(30)])
    result = compare(base, tuned, answer_pattern=GSM8K)
    change = result["difference"]["answer_match"]
    assert change["value"] == pytest.approx(2 / 3)
    assert 0 < change["low"] < change["value"] < change["high"] < 1
    assert "answer match rose from 0.000 to 0.667" in summarize_run({}, result, {}, Curves(), "").result
    assert compare(base, tuned)["difference"]["answer_match"] is None


def test_a_pattern_that_is_none_is_refused() -> None:
    assert parse({"answer_pattern": "#### (.+)"})["answer_pattern"] == "#### (.+)"
    assert parse({})["answer_pattern"] is parse({"answer_pattern": "None"})["answer_pattern"] is None
    with pytest.raises(SettingError, match=r"answer_pattern=\(: expected a regular expression of Python"):
        parse({"answer_pattern": "("})
