"""What a run advises to try next."""

from __future__ import annotations

import pytest

from luthier.evaluation.advice import advise_next_run
from luthier.evaluation.curves import Curves

SETTINGS = {"epoch": 3, "max_steps": -1, "learning_rate": 0.0001}


def advice(losses: list[float], stopped: str = "completed") -> list[str]:
    curves = Curves(eval_loss=[(10.0 * step, loss) for step, loss in enumerate(losses, 1)])
    return advise_next_run(curves, stopped, SETTINGS | ({"max_steps": 60} if stopped == "max_steps" else {}))


def test_a_loss_that_still_falls_asks_for_more() -> None:
    assert advice([2.0, 1.5, 1.2]) == [
        "validation loss was still falling at the last step (1.500 to 1.200): try more epochs (epoch=6) or a higher "
        "learning_rate (0.0002)"
    ]
    assert "more steps (max_steps=120) or a higher learning_rate (0.0002)" in advice([2.0, 1.5], "max_steps")[0]


@pytest.mark.parametrize(
    "losses",
    [[], [1.0], [2.0, 1.0, 1.001], [2.0, 1.0, 0.995], [1.0, 2.0, 1.5], [1.0, 1.0]],
    ids=["none", "one", "rises", "flat", "above its lowest", "equal"],
)
def test_otherwise_there_is_no_advice(losses: list[float]) -> None:
    assert advice(losses) == []


def test_a_run_that_stopped_early_needs_none() -> None:
    assert advice([2.0, 1.5, 1.2], "early_stopping") == []
