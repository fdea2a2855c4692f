"""Checkpoints are whole or absent, verified when read, and never more than asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.errors import CheckpointError
from luthier.training.checkpoint import FILES, Checkpoints, TrainingState
from luthier.training.process_group import ProcessGroup

WEIGHTS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}
MOMENTS = {"a/exp_avg": torch.full((2, 3), 0.5), "a/step": torch.tensor(3.0)}


def saved(folder: Path, *steps: int, limit: int = 2, best: int | None = None) -> Checkpoints:
    checkpoints = Checkpoints(folder, limit, "identity")
    for step in steps:
        checkpoints.save(TrainingState(step=step, best_step=best, best_loss=1.5), WEIGHTS, MOMENTS)
    return checkpoints


def quiet(text: str) -> None:
    """Say nothing."""


def test_what_is_read_is_what_was_saved(tmp_path: Path) -> None:
    found = saved(tmp_path, 3, best=3).latest(quiet)
    assert found is not None
    state, weights, moments = found
    assert state == TrainingState(step=3, best_step=3, best_loss=1.5)
    for name, value in WEIGHTS.items():
        assert weights[name].dtype == value.dtype
        assert torch.equal(weights[name], value)
    assert all(torch.equal(moments[name], value) for name, value in MOMENTS.items())


def test_the_newest_are_kept_and_the_best_besides(tmp_path: Path) -> None:
    assert saved(tmp_path, 1, 2, 3, 4, 5, best=2).steps() == [5, 4, 2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000002", "step-000004", "step-000005"]


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing", "no state"])
def test_a_torn_checkpoint_is_passed_over_and_said(tmp_path: Path, damage: str) -> None:
    checkpoints = saved(tmp_path, 1, 2)
    newest = tmp_path / "step-000002"
    weights = newest / FILES[0]
    content = bytearray(weights.read_bytes())
    if damage == "truncated":
        weights.write_bytes(content[:-3])
    elif damage == "flipped":
        content[-1] ^= 1
        weights.write_bytes(content)
    elif damage == "missing":
        weights.unlink()
    else:
        (newest / "state.json").write_text("{")
    said: list[str] = []
    found = checkpoints.latest(said.append)
    assert found is not None
    assert found[0].step == 1
    assert len(said) == 1
    assert "step 2 is damaged" in said[0]


def test_nothing_readable_is_none(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path, 2, "identity").latest(quiet) is None


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    with pytest.raises(CheckpointError, match="other data, settings or base weights"):
        Checkpoints(tmp_path, 2, "another identity").latest(quiet)


def test_an_unfinished_write_is_no_checkpoint(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 1)
    (tmp_path / ".writing-99").mkdir()
    (tmp_path / ".writing-99" / FILES[0]).write_bytes(b"half")
    assert checkpoints.steps() == [1]


def test_no_pickle_in_a_checkpoint(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} == {".safetensors", ".json"}


def test_what_a_killed_run_was_writing_is_cleared_away(tmp_path: Path) -> None:
    (tmp_path / ".writing-99").mkdir()
    (tmp_path / ".writing-99" / FILES[0]).write_bytes(b"half")
    saved(tmp_path, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]


class Follower(ProcessGroup):
    """A rank that does not lead; what rank 0 found is the newest step."""

    rank, world_size = 1, 2

    def broadcast(self, value: Any) -> Any:
        assert value is None
        return 1


def test_a_rank_that_does_not_lead_writes_nothing_and_opens_what_rank_0_found(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2)
    before = sorted(path.name for path in tmp_path.iterdir())
    follower = Checkpoints(tmp_path, 2, "identity", Follower())
    follower.save(TrainingState(step=3), WEIGHTS, MOMENTS)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    found = follower.latest(quiet)
    assert found is not None
    assert found[0].step == 1


def test_a_state_of_a_version_without_ranks_is_read(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 1)
    path = tmp_path / "step-000001" / "state.json"
    stored = json.loads(path.read_text())
    del stored["state"]["window"]
    path.write_text(json.dumps(stored))
    found = checkpoints.latest(quiet)
    assert found is not None
    assert found[0].micro_batches == 0


STATE_OF_0_3 = {
    "step": 1, "best_step": 1, "best_loss": 2.5, "stale": 3, "tokens": 40, "completion_tokens": 20, "seconds": 1.5,
    "stopped_early": False, "loss_scale": 1024.0, "steady_steps": 7, "window": 4, "rows_at_once": 2,
}  # fmt: skip


def test_a_state_of_version_0_3_is_read_and_written_with_the_same_names(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 1)
    path = tmp_path / "step-000001" / "state.json"
    stored = json.loads(path.read_text())
    assert list(stored["state"]) == list(STATE_OF_0_3)
    path.write_text(json.dumps(stored | {"state": STATE_OF_0_3}))
    found = checkpoints.latest(quiet)
    assert found is not None
    state = found[0]
    assert (state.stale_validations, state.micro_batches, state.rows_at_once, state.loss_scale) == (3, 4, 2, 1024.0)
    assert state.to_json() == STATE_OF_0_3
