"""Checkpoints in S3: copied while a job trains, and found by the next job with the same address."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from supervisor.supervisor_harness import Harness, supervisor_harness

from luthier.errors import UserError
from luthier.supervisor.checkpoint_sync import CheckpointUploads, download_checkpoints

URI = "s3://data/checkpoints/first"
CONFIG = {"CheckpointConfig": {"S3Uri": URI}}


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[Harness]:
    with supervisor_harness(tmp_path) as made:
        yield made


def steps(harness: Harness) -> set[str]:
    return {path.parent.name for path in harness.objects.path(URI).glob("step-*/state.json")}


def log_of(harness: Harness, job: Any) -> str:
    lines = (harness.folder(job) / "logs" / "events.jsonl").read_text().splitlines()
    return "\n".join(json.loads(line)["message"] for line in lines)


def test_the_next_job_goes_on_from_them(harness: Harness) -> None:
    first = harness.create_job("first", CONFIG, hang_at=3, steps=6)
    harness.run_until(lambda: "step-000003" in steps(harness))
    harness.store.request_stop(first.id)
    harness.run_to_end(first)
    second = harness.create_job("second", CONFIG, steps=6)
    harness.run_to_end(second)
    assert f"supervisor: 3 checkpoints found at {URI}; going on from them" in log_of(harness, second)
    assert "resuming after step 3" in log_of(harness, second)
    assert steps(harness) == {f"step-{number:06d}" for number in range(1, 7)}
    alone = harness.create_job("alone", steps=6)
    harness.run_to_end(alone)
    assert json.loads(harness.weights(second))["weights"] == json.loads(harness.weights(alone))["weights"]


def test_none_are_no_error_and_a_missing_bucket_is_one(harness: Harness) -> None:
    (done,) = harness.run_to_end(harness.create_job("new", CONFIG))
    assert done.status == "Completed"
    assert "0 checkpoints found" in log_of(harness, done)
    harness.objects.missing_buckets = {"gone"}
    lost = harness.create_job("lost", {"CheckpointConfig": {"S3Uri": "s3://gone/x"}})
    (failed,) = harness.run_to_end(lost)
    assert failed.training.failure.startswith("ClientError: s3://gone/x: The specified bucket does not exist")


def test_an_incomplete_checkpoint_is_left_out(harness: Harness, tmp_path: Path) -> None:
    for name in ("step-000001/weights.safetensors", "step-000001/state.json", "step-000002/weights.safetensors"):
        path = harness.objects.path(f"{URI}/{name}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    folder = tmp_path / "checkpoints"
    assert download_checkpoints(harness.objects, URI, folder) == 1
    assert [path.name for path in folder.iterdir()] == ["step-000001"]


def test_a_failed_upload_is_said_once_and_tried_again(harness: Harness, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    log: list[str] = []
    (folder / "step-000001").mkdir(parents=True)
    (folder / "step-000001" / "state.json").write_text("{}")
    harness.objects.faults = [UserError("busy"), UserError("busy")]
    uploads = CheckpointUploads(harness.objects, URI, folder, log.append)
    harness.run_until(uploads.poll)
    assert log == ["a checkpoint could not be uploaded: busy; trying again"]
    assert steps(harness) == {"step-000001"}
    assert not uploads.has_failed


def test_without_an_address_nothing_is_copied(harness: Harness, tmp_path: Path) -> None:
    assert CheckpointUploads(harness.objects, "", tmp_path, print).poll()
