"""kill -9 of a whole server's parts at seeded moments, with clients at it: nothing is lost, nothing is done twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from service.storm import Customer, Storm, failures, storm

WORDS = ("red", "blue", "green", "white", "black", "pink", "brown", "grey", "gold", "teal", "lime", "plum")
ROWS = "".join(json.dumps({"instruction": f"Say {word}", "context": "", "response": f"{word} it is"}) + "\n"
               for word in WORDS).encode()  # fmt: skip
HYPERPARAMETERS = {"max_steps": "12", "instruction_tuned": "True", "evaluation_strategy": "steps", "eval_steps": "4",
                   "save_steps": "2", "save_strategy": "steps", "logging_steps": "1", "seed": "3"}  # fmt: skip


def rage(it: Storm, moments: int, span: float) -> None:
    """So many moments, `span` seconds apart at most, while jobs wait and run; then everything is checked."""
    customer = Customer(it, HYPERPARAMETERS)
    customer.prepare(ROWS)
    customer.submit("undisturbed")
    customer.wait(180)
    expected = customer.weights("undisturbed")
    customer.begin()
    for _ in range(moments):
        customer.keep_busy(3)
        it.strike(span)
    customer.wait(1200)
    customer.finish()
    it.wait_ready()
    assert customer.check_objects() > 0
    for name in customer.jobs:
        customer.check_job(name, expected, "artifact " if it.real else "done")
    assert it.faults == []
    assert failures(it.home) == []
    print(f"{moments} moments: {dict(it.struck)}; {len(customer.jobs)} jobs, {len(customer.objects)} keys, "
          f"{customer.put} puts, {customer.described} describes, {customer.unanswered} unanswered")  # fmt: skip


def test_a_small_storm(tmp_path: Path) -> None:
    with storm(tmp_path / "home", 2, real=False) as it:
        rage(it, 4, 1.0)


@pytest.mark.slow
def test_a_long_storm(tmp_path: Path) -> None:
    with storm(tmp_path / "home", 11, real=False) as it:
        rage(it, 100, 2.0)


@pytest.mark.slow
def test_a_storm_on_postgresql(tmp_path: Path, postgres_server: str) -> None:
    with storm(tmp_path / "home", 12, real=False, database=postgres_server) as it:
        rage(it, 30, 2.0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_a_long_storm_over_real_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with storm(tmp_path / "home", seed, real=True) as it:
        rage(it, 25, 10.0)
