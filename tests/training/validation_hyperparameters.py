"""The effects of the hyperparameters of validation, checkpoints and the log."""

from __future__ import annotations

import json

import pytest
from training.training_harness import TOLERANCE, HyperparameterChecks, TrainingHarness

from luthier.evaluation.answers import answers_match

VALIDATION_CHECKS = HyperparameterChecks()


@VALIDATION_CHECKS.of("evaluation_strategy")
def _(harness: TrainingHarness) -> None:
    assert [line["step"] for line in harness.run().validations] == [5, 10]
    assert harness.run(evaluation_strategy="no").validations == []
    assert [line["step"] for line in harness.run(evaluation_strategy="steps", eval_steps=7).validations] == [7, 10]


@VALIDATION_CHECKS.of("eval_steps")
def _(harness: TrainingHarness) -> None:
    done = harness.run(eval_steps=3, early_stopping_patience=-1)  # alone, it asks for steps
    assert [line["step"] for line in done.validations] == [3, 6, 9, 10]


@VALIDATION_CHECKS.of("save_strategy")
def _(harness: TrainingHarness) -> None:
    many = {"evaluation_strategy": "no", "save_total_limit": 99}
    assert harness.run(**many).checkpoints == [5, 10]
    assert harness.run(**many, save_strategy="no").checkpoints == [10]
    assert harness.run(**many, save_strategy="steps", save_steps=4).checkpoints == [4, 8, 10]


@VALIDATION_CHECKS.of("save_steps")
def _(harness: TrainingHarness) -> None:
    done = harness.run(evaluation_strategy="no", save_total_limit=99, save_steps=3)  # alone, it asks for steps
    assert done.checkpoints == [3, 6, 9, 10]


@VALIDATION_CHECKS.of("save_total_limit")
def _(harness: TrainingHarness) -> None:
    for limit, kept in ((1, [10]), (3, [8, 9, 10])):
        done = harness.run(evaluation_strategy="no", save_steps=1, save_total_limit=limit)
        assert done.checkpoints == kept
    best = harness.run(save_steps=1, save_total_limit=1, **DIVERGING)
    assert best.checkpoints == [best.metrics["best"]["step"], best.metrics["steps"]]


DIVERGING = {"learning_rate": 0.05, "epoch": 8, "early_stopping_patience": -1}  # learns the rows, not the task


@VALIDATION_CHECKS.of("load_best_model_at_end")
def _(harness: TrainingHarness) -> None:
    best, last = harness.run(**DIVERGING), harness.run(**DIVERGING, load_best_model_at_end=False)
    seen = [line["eval_loss"] for line in best.validations]
    assert min(seen) < seen[-1]
    assert best.metrics["tuned"]["loss"] == pytest.approx(min(seen), abs=TOLERANCE)
    assert last.metrics["tuned"]["loss"] == pytest.approx(seen[-1], abs=TOLERANCE)


@VALIDATION_CHECKS.of("early_stopping_patience")
def _(harness: TrainingHarness) -> None:
    seen = [line["eval_loss"] for line in harness.run(**DIVERGING).validations]
    for patience in (1, 2):
        done = harness.run(**DIVERGING | {"early_stopping_patience": patience})
        assert done.metrics["stopped"] == "early_stopping"
        assert [line["eval_loss"] for line in done.validations] == seen[: _stop(seen, patience)]
    assert harness.run(**DIVERGING).metrics["stopped"] == "completed"


def _stop(losses: list[float], patience: int) -> int:
    """Validations until `patience` of them in a row were no better than the best before them."""
    stale = 0
    for place, loss in enumerate(losses):
        stale = 0 if loss < min(losses[:place], default=float("inf")) else stale + 1
        if stale == patience:
            return place + 1
    raise AssertionError(f"no {patience} validations in a row without improvement: {losses}")


@VALIDATION_CHECKS.of("early_stopping_threshold")
def _(harness: TrainingHarness) -> None:
    done = harness.run(epoch=8, early_stopping_patience=2, early_stopping_threshold=100)
    assert len(done.validations) == 3  # the first one counts, the next two are no improvement worth the name
    assert done.metrics["stopped"] == "early_stopping"
    losses = [line["eval_loss"] for line in done.validations]
    assert done.metrics["best"]["eval_loss"] == min(losses)  # the best is the best all the same


@VALIDATION_CHECKS.of("logging_steps")
def _(harness: TrainingHarness) -> None:
    done = harness.run(logging_steps=4)
    assert [line["step"] for line in done.steps] == [4, 8, 10]
    assert [line["step"] for line in harness.run().steps] == list(range(1, 11))
    assert [line["loss"] for line in done.steps] == [harness.run().losses[step - 1] for step in (4, 8, 10)]


@VALIDATION_CHECKS.of("logging_strategy")
def _(harness: TrainingHarness) -> None:
    for strategy, logged in (("steps", [7, 10]), ("epoch", [5, 10]), ("no", [10])):
        done = harness.run(logging_strategy=strategy, logging_steps=7)
        assert [line["step"] for line in done.steps] == logged
        assert [line["step"] for line in done.validations] == [5, 10]


@VALIDATION_CHECKS.of("logging_first_step")
def _(harness: TrainingHarness) -> None:
    for strategy, logged in (("steps", [1, 7, 10]), ("epoch", [1, 5, 10]), ("no", [1, 10])):
        done = harness.run(logging_strategy=strategy, logging_steps=7, logging_first_step=True)
        assert [line["step"] for line in done.steps] == logged


@VALIDATION_CHECKS.of("answer_pattern")
def _(harness: TrainingHarness) -> None:
    usual, found = harness.run(score_rows=-1), harness.run(score_rows=-1, answer_pattern=r"(\w)\w*$")
    for model in ("base", "tuned"):
        assert usual.metrics[model]["answer_match"] is None
        path = found.folder.scores / f"{model}.validation.jsonl"
        lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        hits = [answers_match(line["prediction"], line["reference"], r"(\w)\w*$") for line in lines]
        assert found.metrics[model]["answer_match"] == sum(hits) / len(hits)
