"""Few-shot evaluation: where an answer ends, with a model that was trained to go on with another example."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tiny_models import write_model
from training.job_folders import lay_out, run

from luthier.evaluation.evaluate import evaluate
from luthier.evaluation.few_shot import choose_separator
from luthier.evaluation.held_out import end_answer
from luthier.jobfolder import JobFolder

ANSWERS = {"cat": "red", "dog": "blue", "mat": "green", "question": "good", "review": "bad"}
TEMPLATE = {"prompt": "question: {word} =", "completion": " {color}"}


@pytest.mark.parametrize(
    ("text", "end", "expected"),
    [
        (" red\n\nquestion: dog = blue", "\n\n", (" red", True)),
        (" red\nquestion", "\n\n", (" red\nquestion", False)),
        ("\n\nred\n\nmore\n\nand more", "\n\n", ("\n\nred", True)),
        ("a\n\nb\n\n\nc", "\n\n\n", ("a\n\nb", True)),
        ("\n\n\n", "\n\n", ("\n\n\n", False)),
        ("", "\n\n", ("", False)),
        ("red\n\nmore", "", ("red\n\nmore", False)),
    ],
)
def test_an_answer_ends_at_the_first_separator_after_its_first_word(
    text: str, end: str, expected: tuple[str, bool]
) -> None:
    assert end_answer(text, end) == expected


@pytest.mark.parametrize(
    ("completions", "breaks"),
    [([], 2), (["a", "a\nb"], 2), (["\n\n\na\n\n\n"], 2), (["a\n\nb"], 3), (["a", "a\n\nb\n\n\n\nc", "d\n\ne"], 5)],
)
def test_the_separator_is_in_no_completion(completions: Sequence[str], breaks: int) -> None:
    assert choose_separator(completions) == "\n" * breaks


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("few-shot") / "rows"
    folder.mkdir()
    lines = [{"word": word, "color": color, "n": number} for number in range(4) for word, color in ANSWERS.items()]
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    (folder / "template.json").write_text(json.dumps(TEMPLATE))
    return folder


@pytest.fixture(scope="module")
def few_shot_model(tmp_path_factory: pytest.TempPathFactory) -> JobFolder:
    """A model trained on plain text, chains of examples: it knows the answers, and writes another example after one."""
    root = tmp_path_factory.mktemp("few-shot")
    (root / "text").mkdir()
    words = list(ANSWERS)
    order = [words[(start + step * stride) % 5] for start in range(5) for stride in (1, 2, 3, 4) for step in range(5)]
    text = "\n\n".join(f"question: {word} = {ANSWERS[word]}" for word in order)
    (root / "text" / "train.txt").write_text("\n\n".join([text] * 8))
    base = write_model(root / "base", "llama", positions=512)
    folder = lay_out(
        root / "run", base, root / "text", kind="domain", peft_type="none", learning_rate=0.01, epoch=12,
        max_input_length=128, score_rows=0, lora_dropout=0,
    )  # fmt: skip
    run(folder)
    return folder


def scores(model: JobFolder, rows: Path, out: Path, shots: int) -> list[dict[str, Any]]:
    request = {
        "target": str(model.root), "channels": {"training": str(rows)}, "kind": "instruction", "device": "cpu",
        "shots": shots, "out": str(out), "hyperparameters": {"add_input_output_demarcation_key": "False"},
    }  # fmt: skip
    out.mkdir()
    evaluate(request, Console(file=io.StringIO(), width=120))
    return [json.loads(line) for line in (out / "scores.jsonl").read_text("utf-8").splitlines()]


def test_a_model_that_answers_and_goes_on_is_scored_by_its_answers(
    tmp_path: Path, few_shot_model: JobFolder, rows: Path
) -> None:
    lines = scores(few_shot_model, rows, tmp_path / "two", shots=2)
    assert len(lines) == 18
    metrics = json.loads((tmp_path / "two" / "metrics.json").read_text("utf-8"))
    assert metrics["exact_match"] == 1.0
    assert not any(line["truncated_generation"] for line in lines)
    assert not any("truncated" in note for note in metrics["notes"])
    # Without examples nothing says where an answer ends: the same model goes on, and that counts.
    alone = scores(few_shot_model, rows, tmp_path / "none", shots=0)
    assert all(line["prediction"].strip().startswith(ANSWERS[line["prompt"].split()[1]]) for line in alone)
    assert any("\n\nquestion:" in line["prediction"] for line in alone)
    assert json.loads((tmp_path / "none" / "metrics.json").read_text("utf-8"))["exact_match"] == 0.0
