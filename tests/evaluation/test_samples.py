"""Which rows the report shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fake_run import write_lines

from luthier.evaluation.samples import MAX_CHARACTERS, choose_sample_rows


def row(number: int, prediction: str | None, loss: float = 1.0, reference: str = "one two") -> dict[str, Any]:
    return {
        "row": f"r:{number}",
        "loss_sum": loss,
        "tokens": 1,
        "correct": 1,
        "prompt": f"p{number}",
        "reference": reference,
        "prediction": prediction,
    }


def test_improved_worse_and_random(tmp_path: Path) -> None:
    base = [row(0, "x"), row(1, "one two"), row(2, "x"), row(3, "same"), row(4, "same"), row(5, "x"), row(6, None)]
    tuned = [
        row(0, "one"),
        row(1, "x"),
        row(2, "one two"),
        row(3, "same", 0.1),
        row(4, "same"),
        row(5, "x"),
        row(6, None),
    ]
    write_lines(tmp_path / "b", base)
    write_lines(tmp_path / "t", reversed(tuned))
    samples = choose_sample_rows(tmp_path / "b", tmp_path / "t")
    assert [sample.row for sample in samples.groups["improved"]] == ["r:2", "r:0"]
    assert [sample.row for sample in samples.groups["worse"]] == ["r:1"]
    assert {sample.row for sample in samples.groups["random"]} == {"r:3", "r:4", "r:5"}
    assert (samples.improved_rows, samples.worse_rows, samples.rows, samples.by_generation) == (2, 1, 6, True)
    best = samples.groups["improved"][0]
    assert (best.prompt, best.reference, best.base, best.tuned) == ("p2", "one two", "x", "one two")
    assert (best.base_scores["exact_match"], best.tuned_scores["exact_match"]) == (0, 1)


def test_without_generation_loss_decides(tmp_path: Path) -> None:
    write_lines(tmp_path / "b", [row(0, None, 2.0), row(1, None, 2.0), row(2, None, float("nan"))])
    write_lines(tmp_path / "t", [row(0, None, 1.0), row(1, None, 3.0), row(2, None, 1.0)])
    samples = choose_sample_rows(tmp_path / "b", tmp_path / "t")
    assert not samples.by_generation
    assert [sample.row for sample in samples.groups["improved"]] == ["r:0"]
    assert [sample.row for sample in samples.groups["worse"]] == ["r:1"]
    assert samples.groups["random"][0].base_scores["loss"] is None
    assert samples.groups["random"][0].base is None


def test_long_texts_are_cut_and_the_rest_counted(tmp_path: Path) -> None:
    write_lines(tmp_path / "b", [row(0, "x", reference="y" * (MAX_CHARACTERS + 5))])
    samples = choose_sample_rows(tmp_path / "b", tmp_path / "b")
    sample = samples.groups["random"][0]
    assert len(sample.reference) == MAX_CHARACTERS
    assert sample.omitted == {"reference": 5}


def test_ids_that_repeat_and_no_rows(tmp_path: Path) -> None:
    write_lines(tmp_path / "b", [row(1, "x"), row(1, "y"), row(1, "z")])
    assert len(choose_sample_rows(tmp_path / "b", tmp_path / "b").groups["random"]) == 3
    write_lines(tmp_path / "e", [])
    assert choose_sample_rows(tmp_path / "e", tmp_path / "e").rows == 0
