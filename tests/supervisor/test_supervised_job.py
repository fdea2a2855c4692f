"""A training job's life under the supervisor: stages, endings, limits, what is kept and what is said."""

from __future__ import annotations

import errno
import inspect
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from supervisor.supervisor_harness import Harness, supervisor_harness

from luthier.errors import UserError
from luthier.jobs.schema import resources
from luthier.service.keys import Keys
from luthier.supervisor import failure, metrics


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[Harness]:
    with supervisor_harness(tmp_path) as opened:
        yield opened


def messages(harness: Harness, job: Any) -> list[str]:
    lines = (harness.folder(job) / "logs" / "events.jsonl").read_text().splitlines()
    return [json.loads(line)["message"] for line in lines]


def test_a_job_goes_from_the_queue_to_its_uploaded_model(harness: Harness) -> None:
    job = harness.create_job("first", steps=4)
    (done,) = harness.run_to_end(job)
    assert (done.status, done.secondary) == ("Completed", "Completed"), done.training.failure
    assert not done.open
    assert done.owner is None
    stations = [station.status for station in done.training.transitions]
    assert stations == ["Starting", "Downloading", "Training", "Uploading", "Completed"]
    assert all((station.ended or 0) >= station.started for station in done.training.transitions)
    assert done.created <= (done.training.started or 0) <= (done.training.ended or 0)
    assert done.training.artifact == "s3://results/out/first/output/model.tar.gz"
    found = {path.name for path in harness.objects.path("s3://results/out/first/output").iterdir()}
    assert found == {"model.tar.gz", "report.html", "metrics.json", "ledger.jsonl"}
    assert messages(harness, job)[:3] == ["1 files of rows", "step 1", "step 2"]
    assert harness.run_count(job) == 1


def test_metrics_have_jumpstarts_names_and_the_comparison(harness: Harness) -> None:
    (done,) = harness.run_to_end(harness.create_job("numbers", steps=4))
    found = {one["MetricName"]: one["Value"] for one in done.training.metrics}
    assert found["huggingface-textgeneration:eval-loss"] == 0.5
    assert found["huggingface-textgeneration:train-loss"] == 0.25
    assert found["huggingface-textgeneration:eval-ppl"] == pytest.approx(1.6487, abs=1e-4)
    assert (found["luthier:base:loss"], found["luthier:tuned:loss"]) == (2.0, 0.5)
    assert "luthier:base:perplexity" not in found
    assert all(one["Timestamp"] > 1e9 for one in done.training.metrics)


def test_metrics_of_the_callers_own_are_read_from_the_log(harness: Harness) -> None:
    definitions = [
        {"Name": "my:step", "Regex": "^step ([0-9]+)$"},
        {"Name": "huggingface-textgeneration:eval-loss", "Regex": "never"},
        {"Name": "words", "Regex": "(done)"},
        {"Name": "broken", "Regex": "("},
    ]
    job = harness.create_job("own", {"AlgorithmSpecification": {"MetricDefinitions": definitions}}, steps=4)
    (done,) = harness.run_to_end(job)
    found = {one["MetricName"]: one["Value"] for one in done.training.metrics}
    assert (found["my:step"], found["huggingface-textgeneration:eval-loss"]) == (4, 0.5)
    assert "huggingface-textgeneration:train-loss" not in found
    assert not {"words", "broken"} & set(found)
    assert any("metric broken: its Regex cannot be read" in message for message in messages(harness, job))


def test_a_metric_whose_search_does_not_end_is_left_out(tmp_path: Path) -> None:
    events = tmp_path / "events.jsonl"
    events.write_text("".join(json.dumps({"message": text}) + "\n" for text in ("a" * 60 + "!", "loss 2", "loss 3")))
    definitions = [{"Name": "endless", "Regex": "(a|aa)+$"}, {"Name": "mine", "Regex": "loss (.*)"}]
    found, (fault,) = metrics.regex_metrics(events, definitions)
    assert found == {"mine": 3}
    assert fault.startswith("metric endless: its Regex takes more than")


def test_the_engine_sees_the_order_and_none_of_our_secrets(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("LUTHIER_DATABASE", "postgresql://user:secret@host/db")
    monkeypatch.setenv("HF_HOME", "/somewhere")
    job = harness.create_job("orderly", hang_at=1)
    harness.run_until(lambda: harness.run_count(job))
    engine = json.loads((harness.folder(job) / "service.json").read_text())["handle"]["pid"]
    environment = Path(f"/proc/{engine}/environ").read_bytes().decode()
    assert "secret" not in environment
    assert "HF_HOME=/somewhere" in environment
    stored = json.loads((harness.folder(job) / "input/config/job.json").read_text())
    assert (stored["model"], stored["kind"], stored["device"]) == ("luthier/tiny", "instruction", "cpu")
    assert json.loads((harness.folder(job) / "request.json").read_text()) == job.request


@pytest.mark.parametrize(
    ("hyperparameters", "expected"),
    [
        ({"fail": "train.jsonl:3: not JSON"}, "ClientError: train.jsonl:3: not JSON"),
        ({"break": "AlgorithmError: ValueError: what"}, "AlgorithmError: ValueError: what"),
        ({"silent_end": "the last words"},
         "AlgorithmError: the engine ended with exit code 3 and gave no reason; the last line of its log: the last "
         "words"),
        ({"break": "out of memory while training one row at a time; take"}, "InternalServerError: out of memory while"),
        ({"silent_end": "libgomp: Thread creation failed: Resource temporarily unavailable"},
         "InternalServerError: no more threads can be started"),
        ({"silent_end": "terminate called after throwing an instance of 'std::bad_alloc'"},
         "InternalServerError: out of memory"),
        ({"break": "OSError: [Errno 28] No space left on device"}, "is full: free some space, and start the job again"),
    ],
)  # fmt: skip
def test_a_failure_says_why_and_is_kept(harness: Harness, hyperparameters: dict[str, Any], expected: str) -> None:
    job = harness.create_job("failing", **hyperparameters)
    (failed,) = harness.run_to_end(job)
    assert (failed.status, failed.secondary) == ("Failed", "Failed")
    assert expected in failed.training.failure
    assert failed.training.transitions[-1].status == "Failed"
    assert failed.training.transitions[-1].message == failed.training.failure
    assert not failed.training.artifact
    assert (harness.folder(job) / "logs" / "engine.log").exists()
    assert any(expected in message for message in messages(harness, job))
    assert harness.run_count(job) == 1


def test_a_job_reads_and_writes_with_the_rights_of_who_created_it(harness: Harness) -> None:
    keys = Keys(harness.store)
    may = keys.create("ann", rights=["s3://data/rows", "s3://results/out/", "jobs:*"])
    reads_others, writes_others = keys.create("bob", rights=["s3://results"]), keys.create("eve", rights=["s3://data"])
    jobs = [harness.create_job(name) for name in ("may", "reads", "writes")]
    for job, key in zip(jobs, (may, reads_others, writes_others), strict=True):
        with harness.store.write() as connection:
            connection.execute(resources.update().where(resources.c.id == job.id).values(creator=key.id))
    done, unread, unwritten = harness.run_to_end(*jobs)
    assert done.status == "Completed"
    assert (unread.status, unwritten.status) == ("Failed", "Failed")
    assert "s3://data/rows: access denied: the key that created this may not read it" in unread.training.failure
    assert "s3://results/out/writes/output/" in unwritten.training.failure
    assert "may not write it (allowed: s3://data)" in unwritten.training.failure
    assert (harness.run_count(jobs[1]), harness.run_count(jobs[2])) == (0, 0)


def test_rows_that_are_not_there_are_the_callers_fault(harness: Harness) -> None:
    channel = {
        "ChannelName": "train",
        "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": "s3://data/none"}},
    }
    (failed,) = harness.run_to_end(harness.create_job("nowhere", {"InputDataConfig": [channel]}))
    assert failed.training.failure == (
        "ClientError: Data download failed for channel 'training': s3://data/none: no objects found"
    )


def test_an_object_store_that_stumbles_is_asked_again(harness: Harness) -> None:
    harness.objects.faults = [OSError("connection reset")]
    (done,) = harness.run_to_end(harness.create_job("stumbling"))
    assert done.status == "Completed"


def test_a_full_disk_is_said_in_words(harness: Harness) -> None:
    harness.objects.faults = [OSError(errno.ENOSPC, "No space left on device")]
    (failed,) = harness.run_to_end(harness.create_job("full"))
    assert failed.training.failure.startswith("InternalServerError: the disk is full")


def test_an_upload_that_is_refused_fails_the_job_and_keeps_the_model(harness: Harness) -> None:
    job = harness.create_job("refused", hang_at=1)
    harness.run_until(lambda: harness.run_count(job))
    harness.objects.faults = [UserError("s3://results: no such bucket")]
    (harness.folder(job) / "input/config/hyperparameters.json").write_text("{}")
    stop_hanging(harness, job)
    (failed,) = harness.run_to_end(job)
    kept = harness.folder(job) / "model.tar.gz"
    assert failed.training.failure == (
        f"ClientError: Artifact upload failed: s3://results: no such bucket; the model is kept on the server: {kept}"
    )
    assert (harness.folder(job) / "model.tar.gz").exists()


def test_a_missing_output_bucket_is_found_before_the_training(harness: Harness) -> None:
    harness.objects.missing_buckets = {"results"}
    job = harness.create_job("nowhere")
    (failed,) = harness.run_to_end(job)
    assert failed.training.failure.startswith(
        "ClientError: The artifact could not be uploaded to s3://results/out/nowhere"
    )
    assert harness.run_count(job) == 0


def test_warnings_are_in_the_last_transition(harness: Harness) -> None:
    warned = harness.create_job("warned", warn="3 rows are empty|no validation rows")
    plain = harness.create_job("plain")
    messages = [job.training.transitions[-1].message for job in harness.run_to_end(warned, plain)]
    assert messages[0] == f"{messages[1]}; warnings: 3 rows are empty; no validation rows"


def stop_hanging(harness: Harness, job: Any) -> None:
    """End the engine as a passing stranger would; it goes on by the settings that are there now."""
    pid = json.loads((harness.folder(job) / "service.json").read_text())["handle"]["pid"]
    os.kill(pid, signal.SIGKILL)


def test_a_stop_lets_the_engine_write_its_checkpoint(harness: Harness) -> None:
    job = harness.create_job("stopped", hang_at=2, save_steps=100)
    harness.run_until(lambda: (harness.folder(job) / "metrics.jsonl").exists())
    harness.store.request_stop(job.id)
    (stopped,) = harness.run_to_end(job)
    assert (stopped.status, stopped.secondary) == ("Stopped", "Stopped")
    assert stopped.training.artifact == "s3://results/out/stopped/output/model.tar.gz"
    assert harness.objects.path(stopped.training.artifact).is_file()
    assert stopped.training.metrics
    assert stopped.training.transitions[-1].status == "Stopped"


def test_a_job_that_is_stopped_while_the_service_is_down_gets_its_artifact(harness: Harness) -> None:
    job = harness.create_job("down", hang_at=2)
    harness.run_until(lambda: (harness.folder(job) / "metrics.jsonl").exists())
    harness.supervisor.shut_down()  # its engine writes a checkpoint
    harness.store.request_stop(job.id)
    harness.new_supervisor()
    (stopped,) = harness.run_to_end(job)
    assert stopped.status == "Stopped"
    assert harness.objects.path(stopped.training.artifact).is_file()
    assert harness.run_count(job) == 2


def test_a_job_that_is_stopped_before_its_first_step_has_no_artifact(harness: Harness) -> None:
    first, second = harness.create_job("running", hang_at=1), harness.create_job("queued")
    harness.run_until(lambda: harness.run_count(first))
    harness.store.request_stop(second.id)
    (stopped,) = harness.run_to_end(second)
    assert stopped.training.artifact == ""
    assert not list(harness.objects.root.glob("results/**/queued"))


def test_an_engine_that_hears_nothing_is_killed(tmp_path: Path) -> None:
    with supervisor_harness(tmp_path, stop_seconds=0.5) as harness:
        job = harness.create_job("deaf", hang_at=1, deaf=1)
        harness.run_until(lambda: (harness.folder(job) / "metrics.jsonl").exists())
        harness.store.request_stop(job.id)
        (stopped,) = harness.run_to_end(job)
        assert stopped.status == "Stopped"


def test_a_queued_job_is_stopped_without_a_device(harness: Harness) -> None:
    first, second = harness.create_job("running", hang_at=1), harness.create_job("queued")
    harness.run_until(lambda: harness.run_count(first))
    harness.store.request_stop(second.id)
    (stopped,) = harness.run_to_end(second)
    assert stopped.status == "Stopped"
    assert harness.run_count(second) == 0
    assert harness.reload(first).status == "InProgress"


def test_max_runtime_stops_the_job(harness: Harness) -> None:
    job = harness.create_job("long", {"StoppingCondition": {"MaxRuntimeInSeconds": 1}}, steps=1000, step_seconds=0.05)
    (stopped,) = harness.run_to_end(job)
    assert (stopped.status, stopped.secondary) == ("Stopped", "MaxRuntimeExceeded")
    stations = [station.status for station in stopped.training.transitions]
    assert stations == ["Starting", "Downloading", "Training", "Stopping", "MaxRuntimeExceeded"]
    assert any("MaxRuntimeInSeconds" in message for message in messages(harness, job))
    assert harness.objects.path(stopped.training.artifact).is_file()


def test_an_engine_without_progress_is_ended(tmp_path: Path) -> None:
    with supervisor_harness(tmp_path, stall_seconds=0.8) as harness:
        (failed,) = harness.run_to_end(harness.create_job("hanging", hang_at=2))
        assert failed.status == "Failed"
        assert "made no progress for 1 seconds" in failed.training.failure


def test_an_engine_that_computes_is_not_taken_for_stalled(tmp_path: Path) -> None:
    with supervisor_harness(tmp_path, stall_seconds=0.8) as harness:
        job = harness.create_job("thinking", {"StoppingCondition": {"MaxRuntimeInSeconds": 3}}, spin_at=2)
        (stopped,) = harness.run_to_end(job)
        assert stopped.secondary == "MaxRuntimeExceeded"


def test_an_engine_that_is_killed_goes_on_from_its_checkpoint(harness: Harness) -> None:
    undisturbed, killed = harness.create_job("whole", steps=6), harness.create_job("killed", steps=6, die_at=3)
    harness.run_to_end(undisturbed, killed)
    assert harness.reload(killed).status == "Completed"
    assert harness.weights(killed) == harness.weights(undisturbed)
    assert harness.run_count(killed) == 2
    assert "resuming after step 3" in messages(harness, killed)


def test_an_engine_that_always_dies_is_given_up(harness: Harness) -> None:
    job = harness.create_job("doomed", steps=6, save_steps=100, die_at=3, die_times=100)
    (failed,) = harness.run_to_end(job)
    assert failed.status == "Failed"
    expected = "InternalServerError: the engine was killed (SIGKILL), as the kernel does with the largest process when"
    assert failed.training.failure.startswith(expected)
    assert harness.run_count(job) == 3


def test_a_run_that_lost_a_rank_goes_on_too(harness: Harness) -> None:
    reason = "rank 1 was killed (SIGKILL; out of memory?); the last checkpoint is intact; --resume continues from it"
    source = Path(inspect.getfile(failure)).parents[1] / "training" / "launch.py"
    assert failure.RESUMABLE in source.read_text()
    job = harness.create_job("ranks", None, "luthier/tiny", **{"break": reason})
    (failed,) = harness.run_to_end(job)
    assert failed.training.failure.startswith(f"InternalServerError: {reason}")
    assert harness.run_count(job) == 3
    assert any("lost one of its processes; restarting it" in message for message in messages(harness, job))


def test_a_job_whose_folder_is_damaged_fails_alone(harness: Harness) -> None:
    damaged, sound = harness.create_job("damaged"), harness.create_job("sound")
    harness.folder(damaged).mkdir(parents=True)
    (harness.folder(damaged) / "service.json").write_text("{")
    failed, done = harness.run_to_end(damaged, sound)
    assert (failed.status, done.status) == ("Failed", "Completed")
    assert failed.training.failure.startswith("InternalServerError: JSONDecodeError")


def test_sides_inside_one_channel_are_found(harness: Harness) -> None:
    rows = harness.objects.path("s3://data/sides")
    for side in ("train", "validation"):
        (rows / side).mkdir(parents=True)
        (rows / side / "rows.jsonl").write_text("{}\n")
    channel = {
        "ChannelName": "training",
        "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": "s3://data/sides"}},
    }
    job = harness.create_job("sides", {"InputDataConfig": [channel]}, hang_at=1)
    harness.run_until(lambda: harness.run_count(job))
    found = json.loads((harness.folder(job) / "input/config/inputdataconfig.json").read_text())
    assert set(found) == {"training", "validation"}


def test_own_weights_are_downloaded(harness: Harness) -> None:
    weights = harness.objects.path("s3://models/mine")
    weights.mkdir(parents=True)
    (weights / "config.json").write_text("{}")
    job = harness.create_job("own", model="s3://models/mine", hang_at=1)
    harness.run_until(lambda: harness.run_count(job))
    model = json.loads((harness.folder(job) / "input/config/job.json").read_text())["model"]
    assert (Path(model) / "config.json").exists()


def test_loose_files_are_uploaded_one_by_one(harness: Harness) -> None:
    output = {"S3OutputPath": "s3://results/out", "CompressionType": "NONE"}
    (done,) = harness.run_to_end(harness.create_job("loose", {"OutputDataConfig": output}))
    assert done.training.artifact == "s3://results/out/loose/output/model/"
    assert harness.objects.path("s3://results/out/loose/output/model/model.safetensors").exists()
    assert not harness.objects.path("s3://results/out/loose/output/model.tar.gz").exists()


def test_jobs_wait_for_the_one_slot_in_their_order(harness: Harness) -> None:
    jobs = [harness.create_job(f"job-{number}", steps=2) for number in range(3)]
    done = harness.run_to_end(*jobs)
    started = [job.training.started or 0 for job in done]
    ended = [job.training.ended or 0 for job in done]
    assert started == sorted(started)
    assert all(before <= after + 0.2 for before, after in zip(ended, started[1:], strict=False))


def test_a_deleted_job_is_ended(harness: Harness) -> None:
    job = harness.create_job("deleted", hang_at=1)
    harness.run_until(lambda: harness.run_count(job))
    harness.store.delete(job.id)
    harness.run_until(lambda: not harness.supervisor._works)
    assert harness.supervisor.context.devices.has_free
