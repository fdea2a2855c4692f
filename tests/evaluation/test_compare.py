"""Base against tuned: values by hand, null where not applicable, paired intervals."""

from __future__ import annotations

import json
import math
import random
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.catalog.metrics import METRICS
from luthier.errors import DataError, NoGeneratedTextError
from luthier.evaluation.compare import compare, compute_metrics
from luthier.evaluation.curves import Curves
from luthier.evaluation.run_summary import summarize_run
from luthier.evaluation.verdict import TEXT_METRICS, Verdict, judge_difference

APPLICABLE = [name for name in METRICS if name not in ("answer_match", "json_match")]  # to texts without a pattern


def score(
    row: int, loss_sum: float, tokens: int, correct: int, prediction: str | None, reference: str
) -> dict[str, Any]:
    return {
        "row": f"rows.jsonl:{row}",
        "loss_sum": loss_sum,
        "tokens": tokens,
        "correct": correct,
        "prompt": "p",
        "reference": reference,
        "prediction": prediction,
        "truncated_generation": False,
    }


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def test_summary_by_hand(tmp_path: Path) -> None:
    rows = [
        score(1, 2.0, 1, 1, "good", "good"),
        score(2, 1.0, 5, 2, "very bad", "bad"),
        score(3, 3.0, 6, 3, "bad", "good"),
    ]
    summary = compute_metrics(write(tmp_path / "s", rows))
    assert summary["loss"] == pytest.approx(6 / 12)
    assert summary["perplexity"] == pytest.approx(math.exp(0.5))
    assert summary["token_accuracy"] == pytest.approx(6 / 12)
    assert summary["exact_match"] == pytest.approx(1 / 3)
    assert summary["rouge1"] == pytest.approx((1 + 2 / 3 + 0) / 3)
    assert summary["rouge2"] == pytest.approx(0)
    # good: 1 hit, 2 references, 1 predicted -> 2/3; bad: 0 hits ("very bad" is no label), 1 reference, 1 predicted -> 0
    assert summary["f1"] == pytest.approx((2 / 3 + 0) / 2)
    assert (summary["rows"], summary["scored_by_generation"], summary["notes"]) == (3, 3, [])


def test_rows_without_a_prediction_count_for_loss_only(tmp_path: Path) -> None:
    rows = [score(1, 2.0, 2, 1, "a", "a"), score(2, 4.0, 2, 1, None, "a")]
    summary = compute_metrics(write(tmp_path / "s", rows))
    assert summary["loss"] == pytest.approx(1.5)
    assert summary["exact_match"] == 1
    assert summary["scored_by_generation"] == 1
    assert "cover the 1 of 2 rows" in summary["notes"][0]


def test_domain_rows_have_no_text_metrics(tmp_path: Path) -> None:
    base = write(tmp_path / "b", [score(row, 4.0, 2, 1, None, "text") for row in range(4)])
    tuned = write(tmp_path / "t", [score(row, 2.0, 2, 1, None, "text") for row in range(4)])
    result = compare(base, tuned)
    for name in ("rouge1", "rouge2", "rougeL", "rougeLsum", "exact_match", "f1"):
        assert result["base"][name] is result["tuned"][name] is result["difference"][name] is None
    assert result["difference"]["loss"] == {"value": -1.0, "low": -1.0, "high": -1.0}
    assert result["scored_by_generation"] == 0


@pytest.mark.parametrize("rows", [[], [score(1, 0.0, 0, 0, None, "")]])
def test_no_rows_and_no_tokens(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    result = compare(write(tmp_path / "b", rows), write(tmp_path / "t", rows))
    assert result["base"]["loss"] is result["base"]["perplexity"] is result["base"]["token_accuracy"] is None
    assert result["difference"]["loss"] is None
    json.dumps(result, allow_nan=False)


def answers(path: Path, references: list[str], predictions: Sequence[str | None]) -> Path:
    pairs = enumerate(zip(references, predictions, strict=True))
    return write(path, [score(row, 1.0, 2, 1, prediction, reference) for row, (reference, prediction) in pairs])


def test_empty_texts_match_nothing(tmp_path: Path) -> None:
    summary = compute_metrics(answers(tmp_path / "s", ["", " ", "a", "b"], ["", "\n", "a", ""]))
    assert summary["exact_match"] == summary["rouge1"] == summary["rougeL"] == 0.25
    # "": 0 hits; a: 1; b: 0 -> the mean of 0, 1 and 0
    assert summary["f1"] == pytest.approx(1 / 3)
    assert summary["notes"] == [
        "3 generations of the model are empty; an empty text matches nothing",
        "2 rows have an empty reference, which no answer matches",
    ]


def test_empty_references_are_an_error(tmp_path: Path) -> None:
    base = answers(tmp_path / "b", ["", " \n", "not generated"], ["x", "", None])
    calls: list[Callable[[], object]] = [lambda: compute_metrics(base), lambda: compare(base, base)]
    for call in calls:
        with pytest.raises(DataError, match=r"the references of all 2 rows scored by generation are empty") as caught:
            call()
        assert len(str(caught.value).splitlines()) == 1
        assert caught.value.exit_code == 2


def test_a_model_that_generates_nothing_is_an_error(tmp_path: Path) -> None:
    base = answers(tmp_path / "b", ["a", "b"] * 5 + ["c"], ["x", "y"] * 5 + [None])
    tuned = answers(tmp_path / "t", ["a", "b"] * 5 + ["c"], ["", "\n"] * 5 + [None])
    calls: list[Callable[[], object]] = [lambda: compute_metrics(tuned), lambda: compare(base, tuned)]
    for call in calls:
        with pytest.raises(NoGeneratedTextError, match="generated an empty text for all 10 rows") as caught:
            call()
        assert len(str(caught.value).splitlines()) == 1
        assert caught.value.exit_code == 1
    # A base that is silent is a result: the tuned model answers.
    result = compare(tuned, base)
    assert "10 generations of the base model are empty; an empty text matches nothing" in result["notes"]
    assert result["empty_generations"] == {"base": 10, "tuned": 0}


def test_few_rows_without_text_are_a_note_and_no_claim(tmp_path: Path) -> None:
    references = ["a", "b"] * 6
    texts: list[str | None] = ["x", "y", *[None] * 10]
    base = write(tmp_path / "b", [score(row, 4.0 + row / 9, 2, 0, texts[row], references[row]) for row in range(12)])
    blank = [None if text is None else "" for text in texts]
    tuned = write(tmp_path / "t", [score(row, 1.0, 2, 2, blank[row], references[row]) for row in range(12)])
    result = compare(base, tuned)
    assert judge_difference("loss", result["difference"]["loss"], 12) is Verdict.BETTER
    assert "2 generations of the tuned model are empty; an empty text matches nothing" in result["notes"]
    summary = summarize_run({}, result, {}, Curves(), "")
    assert (summary.tone, summary.verdict) == ("unclear", "The tuned model generated no text")


def test_rows_without_generation_may_be_empty(tmp_path: Path) -> None:
    rows = answers(tmp_path / "b", ["", ""], [None, None])
    assert compare(rows, rows)["difference"]["loss"]["value"] == 0


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["", " ", "a", "b", "a b"]), st.sampled_from(["", "\n", "a", "b"])), min_size=10,
             max_size=30),
    st.sampled_from(["", " ", "\n"]),
    st.booleans(),
)  # fmt: skip
def test_nothing_generated_is_never_better(rows: list[tuple[str, str]], silence: str, one_word: bool) -> None:
    """Whatever references and base are, a tuned model that writes nothing (or one wrong word) is not called better."""
    references, predictions = [reference for reference, _ in rows], [answer for _, answer in rows]
    with tempfile.TemporaryDirectory() as folder:
        base = answers(Path(folder) / "b", references, predictions)
        silent: list[str | None] = ["zzz" if one_word else silence, *[silence] * (len(rows) - 1)]
        tuned = answers(Path(folder) / "t", references, silent)
        if not one_word or not any(reference.strip() for reference in references):
            with pytest.raises((NoGeneratedTextError, DataError)):
                compare(base, tuned)
            return
        result = compare(base, tuned)
    for name in TEXT_METRICS:
        assert judge_difference(name, result["difference"][name], len(rows)) is not Verdict.BETTER, name
        assert not result["tuned"][name]


def test_blanking_the_answers_of_a_better_model_makes_no_report(tmp_path: Path) -> None:
    base, tuned = noisy(tmp_path / "b", 1, 0.2, 2.0), noisy(tmp_path / "t", 2, 0.9, 0.8)
    assert judge_difference("exact_match", compare(base, tuned)["difference"]["exact_match"], 120) is Verdict.BETTER
    lines = [json.loads(line) for line in tuned.read_text("utf-8").splitlines()]
    with pytest.raises(NoGeneratedTextError):
        compare(base, write(tmp_path / "blank", [line | {"prediction": ""} for line in lines]))


def lagging(path: Path, wrong: str, exact: int, reference: str = "the cat sat {row}") -> Path:
    """Thirty rows: the first `exact` are answered rightly, the others with `wrong`."""
    lines = []
    for row in range(30):
        text = reference.format(row=row)
        lines.append(score(row, 1.0, 2, 1, text if row < exact else wrong, text))
    return write(path, lines)


def test_rouge_that_flatters_is_marked(tmp_path: Path) -> None:
    base, tuned = lagging(tmp_path / "b", "nothing", 2), lagging(tmp_path / "t", "the cat sat", 3)
    result = compare(base, tuned)
    note = "ROUGE is better, exact match is not (0.067 to 0.100): shared words are not right answers"
    assert note in result["notes"]
    assert summarize_run({}, result, {}, Curves(), "").verdict == "Measurably better, but exact match is not"
    # Labels that were never met, neither before nor after:
    never = compare(
        lagging(tmp_path / "b2", "nothing", 0, "very good"), lagging(tmp_path / "t2", "very bad", 0, "very good")
    )
    assert any(line.startswith("ROUGE is better, exact match is not (0.000 to 0.000)") for line in never["notes"])


def test_free_text_and_right_answers_are_not_marked(tmp_path: Path) -> None:
    free = compare(lagging(tmp_path / "b", "nothing", 0), lagging(tmp_path / "t", "the cat sat", 0))
    assert free["notes"] == []
    right = compare(lagging(tmp_path / "b2", "nothing", 2), lagging(tmp_path / "t2", "the cat sat", 28))
    assert right["notes"] == []
    assert summarize_run({}, right, {}, Curves(), "").verdict == "Measurably better"


def test_one_row_has_no_interval(tmp_path: Path) -> None:
    base = write(tmp_path / "b", [score(1, 4.0, 2, 0, "x", "a")])
    tuned = write(tmp_path / "t", [score(1, 2.0, 2, 2, "a", "a")])
    result = compare(base, tuned)
    assert result["difference"]["exact_match"] == {"value": 1.0, "low": None, "high": None}
    assert result["difference"]["loss"] == {"value": -1.0, "low": None, "high": None}
    assert result["difference"]["f1"] == {"value": 1.0, "low": None, "high": None}


def test_equal_models_differ_by_nothing(tmp_path: Path) -> None:
    rows = [score(row, row / 3, 3, 1, random.Random(row).choice("ab"), "a" if row % 2 else "b") for row in range(40)]
    result = compare(write(tmp_path / "b", rows), write(tmp_path / "t", rows))
    for name in APPLICABLE:
        assert result["difference"][name] == {"value": 0.0, "low": 0.0, "high": 0.0}, name


def noisy(path: Path, seed: int, hit: float, nats: float, rows: int = 120) -> Path:
    draw = random.Random(seed)
    lines = []
    for row in range(rows):
        reference = random.Random(row).choice(["one two", "two three", "three"])
        prediction = reference if draw.random() < hit else draw.choice(["three", "two three", "noise"])
        tokens = 1 + row % 7
        lines.append(
            score(row, tokens * abs(draw.gauss(nats, 0.3)), tokens, min(tokens, 1 + row % 3), prediction, reference)
        )
    return write(path, lines)


def test_a_clear_gain_has_an_interval_around_it(tmp_path: Path) -> None:
    result = compare(noisy(tmp_path / "b", 1, 0.2, 2.0), noisy(tmp_path / "t", 2, 0.9, 0.8), seed=5)
    for name in APPLICABLE:
        change = result["difference"][name]
        assert change["value"] == pytest.approx(result["tuned"][name] - result["base"][name])
        assert change["low"] <= change["value"] <= change["high"], name
        if name in ("loss", "perplexity"):
            assert change["high"] < 0
        elif name != "token_accuracy":
            assert change["low"] > 0, name
    assert result["difference"]["exact_match"]["high"] - result["difference"]["exact_match"]["low"] < 0.3


def test_a_seed_repeats_its_numbers(tmp_path: Path) -> None:
    base, tuned = noisy(tmp_path / "b", 1, 0.4, 2.0), noisy(tmp_path / "t", 2, 0.5, 1.9)
    assert compare(base, tuned, 7) == compare(base, tuned, 7)
    assert compare(base, tuned, 7) != compare(base, tuned, 8)


def test_pairing_is_used(tmp_path: Path) -> None:
    """Every row gains 0.1 nats per token, the spread is 2: unpaired intervals would be wide, paired ones are points."""
    base = write(tmp_path / "b", [score(row, 10.0 * (row % 5), 10, 1, None, "") for row in range(50)])
    tuned = write(tmp_path / "t", [score(row, 10.0 * (row % 5) - 1, 10, 1, None, "") for row in range(50)])
    change = compare(base, tuned)["difference"]["loss"]
    assert change["low"] == pytest.approx(-0.1)
    assert change["high"] == pytest.approx(-0.1)


def test_order_of_the_tuned_file_does_not_matter(tmp_path: Path) -> None:
    base, tuned = noisy(tmp_path / "b", 1, 0.4, 2.0), noisy(tmp_path / "t", 2, 0.5, 1.9)
    lines = tuned.read_text().splitlines(keepends=True)
    (tmp_path / "r").write_text("".join(reversed(lines)))
    assert compare(base, tmp_path / "r") == compare(base, tuned)


def test_text_metrics_use_rows_generated_by_both(tmp_path: Path) -> None:
    base = write(
        tmp_path / "b", [score(1, 1, 1, 1, "a", "a"), score(2, 1, 1, 1, "x", "a"), score(3, 1, 1, 1, None, "a")]
    )
    tuned = write(
        tmp_path / "t", [score(1, 1, 1, 1, "x", "a"), score(2, 1, 1, 1, None, "a"), score(3, 1, 1, 1, "a", "a")]
    )
    result = compare(base, tuned)
    assert result["scored_by_generation"] == 1
    assert (result["base"]["exact_match"], result["tuned"]["exact_match"]) == (1, 0)


def test_infinite_losses_are_null_and_said(tmp_path: Path) -> None:
    base = write(tmp_path / "b", [score(row, 1.0, 1, 1, None, "") for row in range(3)])
    tuned = write(tmp_path / "t", [score(row, math.nan if row else 1.0, 1, 1, None, "") for row in range(3)])
    result = compare(base, tuned)
    assert result["tuned"]["loss"] is None
    assert result["difference"]["loss"] is None
    assert any("2 rows have a non-finite loss under the tuned model" in note for note in result["notes"])
    json.dumps(result, allow_nan=False)


def test_perplexity_beyond_numbers_is_null(tmp_path: Path) -> None:
    rows = [score(row, 2000.0, 1, 0, None, "") for row in range(3)]
    result = compare(write(tmp_path / "b", rows), write(tmp_path / "t", rows))
    assert result["base"]["loss"] == 2000
    assert result["base"]["perplexity"] is None
    json.dumps(result, allow_nan=False)


def test_f1_is_null_for_free_text(tmp_path: Path) -> None:
    base = write(tmp_path / "b", [score(row, 1, 1, 1, f"text {row}", f"text {row}") for row in range(21)])
    result = compare(base, base)
    assert result["base"]["f1"] is None
    assert result["difference"]["f1"] is None
    assert result["base"]["exact_match"] == 1


def test_a_small_sample_of_free_text_is_not_taken_for_labels(tmp_path: Path) -> None:
    rows = [score(number, 1.0, 1, 0, "a" if number < 5 else None, f"text {number}") for number in range(30)]
    result = compare(write(tmp_path / "base.jsonl", rows), write(tmp_path / "tuned.jsonl", rows))
    assert result["scored_by_generation"] == 5
    assert result["base"]["f1"] is result["tuned"]["f1"] is result["difference"]["f1"] is None


def test_uneven_tokens_are_said(tmp_path: Path) -> None:
    base = write(tmp_path / "b", [score(1, 1, 2, 1, None, ""), score(2, 1, 2, 1, None, "")])
    tuned = write(tmp_path / "t", [score(1, 1, 3, 1, None, ""), score(2, 1, 2, 1, None, "")])
    assert any("1 rows have different completion token counts" in note for note in compare(base, tuned)["notes"])
