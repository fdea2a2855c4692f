"""Reading and pairing per-row scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from luthier.errors import RunFolderError
from luthier.evaluation.scores import align_rows, read_scores, row_id


def score(row: str, **changes: Any) -> dict[str, Any]:
    return {
        "row": row,
        "loss_sum": 2.0,
        "tokens": 4,
        "correct": 3,
        "prompt": "p",
        "reference": "yes",
        "prediction": "yes",
        "truncated_generation": False,
    } | changes


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


def test_columns(tmp_path: Path) -> None:
    rows = [
        score("a:1", prediction=" yes "),
        score("a:2", prediction="no", truncated_generation=True, loss_sum=1.5),
        score("a:3", prediction=None, tokens=0),
        score("a:4", reference="x" * 30_000, prediction="x"),
    ]
    scores = read_scores(write(tmp_path / "s.jsonl", rows))
    assert len(scores) == 4
    assert scores.generated.tolist() == [True, True, False, True]
    assert scores.loss_sum.tolist() == [2, 1.5, 2, 2]
    assert scores.tokens.tolist() == [4, 4, 0, 4]
    assert scores.texts[:, 4].tolist() == [1, 0, 0, 0]
    assert scores.prediction[0] == scores.reference[0]
    assert (scores.unfinished, scores.truncated) == (1, 1)


def test_line_separators_inside_texts_are_no_line_ends(tmp_path: Path) -> None:
    scores = read_scores(write(tmp_path / "s.jsonl", [score("a:1", reference="a\u2028b\x85c", prediction="a\rb")]))
    assert len(scores) == 1


def test_empty_file(tmp_path: Path) -> None:
    assert len(read_scores(write(tmp_path / "s.jsonl", []))) == 0


@pytest.mark.parametrize("line", ["{not json", '{"row": "a"}', "[]", "3"])
def test_a_torn_line_is_named(tmp_path: Path, line: str) -> None:
    path = write(tmp_path / "s.jsonl", [score("a:1")])
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(RunFolderError, match=r"s\.jsonl:2: invalid scores row"):
        read_scores(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="scores file not found"):
        read_scores(tmp_path / "none.jsonl")


def test_rows_pair_by_id_in_any_order(tmp_path: Path) -> None:
    base = read_scores(write(tmp_path / "b", [score("a:1", loss_sum=1), score("a:2", loss_sum=2), score("a:3")]))
    tuned = read_scores(write(tmp_path / "t", [score("a:3"), score("a:2", loss_sum=20), score("a:1", loss_sum=10)]))
    base, tuned = align_rows(base, tuned)
    assert base.loss_sum.tolist()[:2] == [1, 2]
    assert tuned.loss_sum.tolist()[:2] == [10, 20]


def test_an_id_that_occurs_twice_pairs_in_order(tmp_path: Path) -> None:
    base = read_scores(write(tmp_path / "b", [score("a:1", loss_sum=1), score("a:1", loss_sum=2), score("b:1")]))
    tuned = read_scores(write(tmp_path / "t", [score("b:1"), score("a:1", loss_sum=10), score("a:1", loss_sum=20)]))
    assert align_rows(base, tuned)[1].loss_sum.tolist()[:2] == [10, 20]


def test_missing_rows_are_an_error_that_names_one(tmp_path: Path) -> None:
    base = read_scores(write(tmp_path / "b", [score("a:1"), score("a:2")]))
    tuned = read_scores(write(tmp_path / "t", [score("a:1")]))
    with pytest.raises(RunFolderError, match=r"different rows \(2 and 1\); a:2 is missing in t"):
        align_rows(base, tuned)
    with pytest.raises(RunFolderError, match="a:2 is missing in t"):
        align_rows(tuned, base)


def test_other_references_are_an_error(tmp_path: Path) -> None:
    base = read_scores(write(tmp_path / "b", [score("a:1"), score("a:2")]))
    tuned = read_scores(write(tmp_path / "t", [score("a:1"), score("a:2", reference="changed")]))
    with pytest.raises(RunFolderError, match="row a:2 has a different reference"):
        align_rows(base, tuned)


def test_row_id(tmp_path: Path) -> None:
    path = write(tmp_path / "b", [score("a:1"), score("ü:2")])
    assert row_id(path, read_scores(path).row[1]) == "ü:2"
    assert row_id(path, 1) == "?"
