"""The effects of auto_find_batch_size, train_on_turns and reasoning; test_every_hyperparameter.py runs them."""

from __future__ import annotations

import json

import pytest
from torch import Tensor
from training.training_harness import TOLERANCE, HyperparameterChecks, TrainingHarness

from luthier.errors import DataError
from luthier.layers.batch import Batch
from luthier.weights.model import Model

BATCH_CHECKS = HyperparameterChecks()


@BATCH_CHECKS.of("auto_find_batch_size")
def _(harness: TrainingHarness) -> None:
    step = {"gradient_accumulation_steps": 3, "per_device_train_batch_size": 2, "epoch": 1}
    usual, found = harness.run(**step), harness.run(auto_find_batch_size=True, **step)
    assert [len(batch.rows) for batch in usual.trained] == [2] * 10
    assert [len(batch.rows) for batch in found.trained] == [6, 6, 6, 2], "a step's rows in one micro-batch"
    assert found.losses == pytest.approx(usual.losses, abs=TOLERANCE)

    with pytest.MonkeyPatch.context() as patch:
        _with_room_for(patch, 3)
        tight = harness.run(auto_find_batch_size=True, seed=10, **step)
    assert [len(batch.rows) for batch in tight.trained] == [6, 3, 3, 3, 3, 3, 3, 2]
    assert tight.losses == pytest.approx(usual.losses, abs=TOLERANCE)
    assert any("out of memory while training on 6 rows at once: 3" in text for text in tight.record["warnings"])


@BATCH_CHECKS.of("train_on_turns")
def _(harness: TrainingHarness) -> None:
    name = harness.write("turns", [{"messages": [
        {"role": "user", "content": f"cat {number}"}, {"role": "assistant", "content": "dog"},
        {"role": "user", "content": "mat " * (number % 3 + 1)}, {"role": "assistant", "content": "red"},
    ]} for number in range(12)])  # fmt: skip
    runs = {turns: harness.run(name, train_on_turns=turns, epoch=1) for turns in ("assistant", "last", "all")}
    every, last, both = (runs[turns] for turns in ("assistant", "last", "all"))
    learned = [done.steps[-1]["completion_tokens"] for done in (last, every, both)]
    assert learned[0] < learned[1] < learned[2]
    assert every.steps[-1]["tokens"] == both.steps[-1]["tokens"], "the rows are the same"
    assert harness.run(name, epoch=1).losses == every.losses
    assert every.metrics["base"]["loss"] == both.metrics["base"]["loss"], "answers are scored, whatever was trained on"
    assert last.metrics["base"]["loss"] != every.metrics["base"]["loss"]
    assert len({json.dumps(done.losses) for done in runs.values()}) == 3


@BATCH_CHECKS.of("reasoning")
def _(harness: TrainingHarness) -> None:
    """The tiny model's template reads no reasoning and has no markers for it: it is refused, or dropped on request."""
    talk = [{"role": "user", "content": "cat"}, {"role": "assistant", "content": "dog"}]
    thoughts = [*talk[:1], talk[1] | {"reasoning_content": "a mat"}]
    plain, thinking = (
        harness.write(name, [{"messages": messages}] * 4)
        for name, messages in (("no-thoughts", talk), ("thoughts", thoughts))
    )
    with pytest.raises(DataError, match="message 2 has 'reasoning_content', which the model's chat template does not"):
        harness.run(thinking)
    with pytest.raises(DataError, match="reasoning=drop leaves it out"):
        harness.run(thinking, reasoning="inline")
    assert harness.run(thinking, reasoning="drop").losses == harness.run(plain).losses


def _with_room_for(patch: pytest.MonkeyPatch, rows: int) -> None:
    plain = Model.loss

    def loss(model: Model, batch: Batch, smoothing: float = 0.0) -> Tensor:
        if len(batch.rows) > rows:
            raise MemoryError
        return plain(model, batch, smoothing)

    patch.setattr(Model, "loss", loss)
