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
from supervisor.workbench import Bench, bench

from luthier.errors import UserError
from luthier.supervisor import ending, metrics, order


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Bench]:
    with bench(tmp_path) as made:
        yield made


def messages(home: Bench, job: Any) -> list[str]:
    lines = (home.folder(job) / "logs" / "events.jsonl").read_text().splitlines()
    return [json.loads(line)["message"] for line in lines]


def test_a_job_goes_from_the_queue_to_its_uploaded_model(home: Bench) -> None:
    job = home.order("first", steps=4)
    (done,) = home.finish(job)
    assert (done.status, done.secondary) == ("Completed", "Completed"), done.facts.get("failure")
    assert not done.open
    assert done.owner is None
    stations = [station["Status"] for station in done.facts["transitions"]]
    assert stations == ["Starting", "Downloading", "Training", "Uploading", "Completed"]
    assert all(station["EndTime"] >= station["StartTime"] for station in done.facts["transitions"])
    assert done.created <= done.facts["started"] <= done.facts["ended"]
    assert done.facts["artifact"] == "s3://results/out/first/output/model.tar.gz"
    found = {path.name for path in home.objects.path("s3://results/out/first/output").iterdir()}
    assert found == {"model.tar.gz", "report.html", "metrics.json", "ledger.jsonl"}
    assert messages(home, job)[:3] == ["1 files of rows", "step 1", "step 2"]
    assert home.runs(job) == 1


def test_metrics_have_jumpstarts_names_and_the_comparison(home: Bench) -> None:
    (done,) = home.finish(home.order("numbers", steps=4))
    found = {one["MetricName"]: one["Value"] for one in done.facts["metrics"]}
    assert found["huggingface-textgeneration:eval-loss"] == 0.5
    assert found["huggingface-textgeneration:train-loss"] == 0.25
    assert found["huggingface-textgeneration:eval-ppl"] == pytest.approx(1.6487, abs=1e-4)
    assert (found["luthier:base:loss"], found["luthier:tuned:loss"]) == (2.0, 0.5)
    assert "luthier:base:perplexity" not in found
    assert all(one["Timestamp"] > 1e9 for one in done.facts["metrics"])


def test_metrics_of_the_callers_own_are_read_from_the_log(home: Bench) -> None:
    definitions = [
        {"Name": "my:step", "Regex": "^step ([0-9]+)$"},
        {"Name": "huggingface-textgeneration:eval-loss", "Regex": "never"},
        {"Name": "words", "Regex": "(done)"},
        {"Name": "broken", "Regex": "("},
    ]
    job = home.order("own", {"AlgorithmSpecification": {"MetricDefinitions": definitions}}, steps=4)
    (done,) = home.finish(job)
    found = {one["MetricName"]: one["Value"] for one in done.facts["metrics"]}
    assert (found["my:step"], found["huggingface-textgeneration:eval-loss"]) == (4, 0.5)
    assert "huggingface-textgeneration:train-loss" not in found
    assert not {"words", "broken"} & set(found)
    assert any("metric broken: its Regex cannot be read" in message for message in messages(home, job))


def test_a_metric_whose_search_does_not_end_is_left_out(tmp_path: Path) -> None:
    events = tmp_path / "events.jsonl"
    events.write_text("".join(json.dumps({"message": text}) + "\n" for text in ("a" * 60 + "!", "loss 2", "loss 3")))
    definitions = [{"Name": "endless", "Regex": "(a|aa)+$"}, {"Name": "mine", "Regex": "loss (.*)"}]
    found, (fault,) = metrics.found_in(events, definitions)
    assert found == {"mine": 3}
    assert fault.startswith("metric endless: its Regex takes more than")


def test_the_engine_sees_the_order_and_none_of_our_secrets(home: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("LUTHIER_DATABASE", "postgresql://user:secret@host/db")
    monkeypatch.setenv("HF_HOME", "/somewhere")
    job = home.order("orderly", hang_at=1)
    home.until(lambda: home.runs(job))
    engine = json.loads((home.folder(job) / "service.json").read_text())["process"]["pid"]
    environment = Path(f"/proc/{engine}/environ").read_bytes().decode()
    assert "secret" not in environment
    assert "HF_HOME=/somewhere" in environment
    stored = json.loads((home.folder(job) / "input/config/job.json").read_text())
    assert (stored["model"], stored["kind"], stored["device"]) == ("luthier/tiny", "instruction", "cpu")
    assert json.loads((home.folder(job) / "request.json").read_text()) == job.request


@pytest.mark.parametrize(
    ("hyperparameters", "expected"),
    [
        ({"fail": "train.jsonl:3: not JSON"}, "ClientError: train.jsonl:3: not JSON"),
        ({"break": "AlgorithmError: ValueError: what"}, "AlgorithmError: ValueError: what"),
        ({"silent_end": 1}, "AlgorithmError: the engine ended with exit code 3 and gave no reason; the last line of "
                            "its log: the last words"),
        ({"break": "OSError: [Errno 28] No space left on device"}, "is full: make room, and start the job again"),
    ],
)  # fmt: skip
def test_a_failure_says_why_and_is_kept(home: Bench, hyperparameters: dict[str, Any], expected: str) -> None:
    job = home.order("failing", **hyperparameters)
    (failed,) = home.finish(job)
    assert (failed.status, failed.secondary) == ("Failed", "Failed")
    assert expected in failed.facts["failure"]
    assert failed.facts["transitions"][-1]["Status"] == "Failed"
    assert failed.facts["transitions"][-1]["StatusMessage"] == failed.facts["failure"]
    assert "artifact" not in failed.facts
    assert (home.folder(job) / "logs" / "engine.log").exists()
    assert any(expected in message for message in messages(home, job))
    assert home.runs(job) == 1


def test_rows_that_are_not_there_are_the_callers_fault(home: Bench) -> None:
    channel = {"ChannelName": "train", "DataSource": {"S3DataSource": {"S3Uri": "s3://data/none"}}}
    (failed,) = home.finish(home.order("nowhere", {"InputDataConfig": [channel]}))
    assert failed.facts["failure"] == (
        "ClientError: Data download failed for channel 'training': s3://data/none: no objects are there"
    )


def test_an_object_store_that_stumbles_is_asked_again(home: Bench) -> None:
    home.objects.faults = [OSError("connection reset")]
    (done,) = home.finish(home.order("stumbling"))
    assert done.status == "Completed"


def test_a_full_disk_is_said_in_words(home: Bench) -> None:
    home.objects.faults = [OSError(errno.ENOSPC, "No space left on device")]
    (failed,) = home.finish(home.order("full"))
    assert failed.facts["failure"].startswith("InternalServerError: the disk is full")


def test_an_upload_that_is_refused_fails_the_job_and_keeps_the_model(home: Bench) -> None:
    job = home.order("refused", hang_at=1)
    home.until(lambda: home.runs(job))
    home.objects.faults = [UserError("s3://results: no such bucket")]
    (home.folder(job) / "input/config/hyperparameters.json").write_text("{}")
    stop_hanging(home, job)
    (failed,) = home.finish(job)
    assert failed.facts["failure"] == "ClientError: Artifact upload failed: s3://results: no such bucket"
    assert (home.folder(job) / "model.tar.gz").exists()


def stop_hanging(home: Bench, job: Any) -> None:
    """End the engine as a passing stranger would; it goes on by the settings that are there now."""
    pid = json.loads((home.folder(job) / "service.json").read_text())["process"]["pid"]
    os.kill(pid, signal.SIGKILL)


def test_a_stop_lets_the_engine_write_its_checkpoint(home: Bench) -> None:
    job = home.order("stopped", hang_at=2, save_steps=100)
    home.until(lambda: (home.folder(job) / "metrics.jsonl").exists())
    home.store.ask_stop(job.id)
    (stopped,) = home.finish(job)
    assert (stopped.status, stopped.secondary) == ("Stopped", "Stopped")
    assert list((home.folder(job) / "checkpoints").iterdir())
    assert stopped.facts["transitions"][-1]["Status"] == "Stopped"


def test_an_engine_that_hears_nothing_is_killed(tmp_path: Path) -> None:
    with bench(tmp_path, stop_seconds=0.5) as home:
        job = home.order("deaf", hang_at=1, deaf=1)
        home.until(lambda: (home.folder(job) / "metrics.jsonl").exists())
        home.store.ask_stop(job.id)
        (stopped,) = home.finish(job)
        assert stopped.status == "Stopped"


def test_a_queued_job_is_stopped_without_a_device(home: Bench) -> None:
    first, second = home.order("running", hang_at=1), home.order("queued")
    home.until(lambda: home.runs(first))
    home.store.ask_stop(second.id)
    (stopped,) = home.finish(second)
    assert stopped.status == "Stopped"
    assert home.runs(second) == 0
    assert home.now(first).status == "InProgress"


def test_max_runtime_stops_the_job(home: Bench) -> None:
    job = home.order("long", {"StoppingCondition": {"MaxRuntimeInSeconds": 1}}, steps=1000, step_seconds=0.05)
    (stopped,) = home.finish(job)
    assert (stopped.status, stopped.secondary) == ("Stopped", "MaxRuntimeExceeded")
    stations = [station["Status"] for station in stopped.facts["transitions"]]
    assert stations == ["Starting", "Downloading", "Training", "Stopping", "MaxRuntimeExceeded"]
    assert any("MaxRuntimeInSeconds" in message for message in messages(home, job))


def test_an_engine_without_progress_is_ended(tmp_path: Path) -> None:
    with bench(tmp_path, stall_seconds=0.8) as home:
        (failed,) = home.finish(home.order("hanging", hang_at=2))
        assert failed.status == "Failed"
        assert "made no progress for 1 seconds" in failed.facts["failure"]


def test_an_engine_that_computes_is_not_taken_for_stalled(tmp_path: Path) -> None:
    with bench(tmp_path, stall_seconds=0.8) as home:
        job = home.order("thinking", {"StoppingCondition": {"MaxRuntimeInSeconds": 3}}, spin_at=2)
        (stopped,) = home.finish(job)
        assert stopped.secondary == "MaxRuntimeExceeded"


def test_an_engine_that_is_killed_goes_on_from_its_checkpoint(home: Bench) -> None:
    undisturbed, killed = home.order("whole", steps=6), home.order("killed", steps=6, die_at=3)
    home.finish(undisturbed, killed)
    assert home.now(killed).status == "Completed"
    assert home.weights(killed) == home.weights(undisturbed)
    assert home.runs(killed) == 2
    assert "resuming after step 3" in messages(home, killed)


def test_an_engine_that_always_dies_is_given_up(home: Bench) -> None:
    job = home.order("doomed", steps=6, save_steps=100, die_at=3, die_times=100)
    (failed,) = home.finish(job)
    assert failed.status == "Failed"
    assert "SIGKILL), as the kernel does with the largest process when memory runs out" in failed.facts["failure"]
    assert home.runs(job) == 3


def test_a_run_that_lost_a_rank_goes_on_too(home: Bench) -> None:
    reason = "rank 1 was killed (SIGKILL; out of memory?); the last checkpoint is intact, --resume goes on from it"
    source = Path(inspect.getfile(order)).parents[1] / "training" / "launch.py"
    assert ending.RESUMABLE in source.read_text()
    job = home.order("ranks", facts={"hyperparameters": {"break": reason}})
    (failed,) = home.finish(job)
    assert failed.facts["failure"].startswith(f"AlgorithmError: {reason}")
    assert home.runs(job) == 3
    assert any("lost one of its processes; it is started again" in message for message in messages(home, job))


def test_a_job_whose_folder_is_damaged_fails_alone(home: Bench) -> None:
    damaged, sound = home.order("damaged"), home.order("sound")
    home.folder(damaged).mkdir(parents=True)
    (home.folder(damaged) / "service.json").write_text("{")
    failed, done = home.finish(damaged, sound)
    assert (failed.status, done.status) == ("Failed", "Completed")
    assert failed.facts["failure"].startswith("InternalServerError: JSONDecodeError")


def test_sides_inside_one_channel_are_found(home: Bench) -> None:
    rows = home.objects.path("s3://data/sides")
    for side in ("train", "validation"):
        (rows / side).mkdir(parents=True)
        (rows / side / "rows.jsonl").write_text("{}\n")
    channel = {"ChannelName": "training", "DataSource": {"S3DataSource": {"S3Uri": "s3://data/sides"}}}
    job = home.order("sides", {"InputDataConfig": [channel]}, hang_at=1)
    home.until(lambda: home.runs(job))
    found = json.loads((home.folder(job) / "input/config/inputdataconfig.json").read_text())
    assert set(found) == {"training", "validation"}


def test_own_weights_are_downloaded(home: Bench) -> None:
    weights = home.objects.path("s3://models/mine")
    weights.mkdir(parents=True)
    (weights / "config.json").write_text("{}")
    job = home.order("own", facts={"base_model": "s3://models/mine"}, hang_at=1)
    home.until(lambda: home.runs(job))
    model = json.loads((home.folder(job) / "input/config/job.json").read_text())["model"]
    assert (Path(model) / "config.json").exists()


def test_loose_files_are_uploaded_one_by_one(home: Bench) -> None:
    output = {"S3OutputPath": "s3://results/out", "CompressionType": "NONE"}
    (done,) = home.finish(home.order("loose", {"OutputDataConfig": output}))
    assert done.facts["artifact"] == "s3://results/out/loose/output/model/"
    assert home.objects.path("s3://results/out/loose/output/model/model.safetensors").exists()
    assert not home.objects.path("s3://results/out/loose/output/model.tar.gz").exists()


@pytest.mark.parametrize(
    ("channel", "expected"),
    [
        ({"ChannelName": "rows", "DataSource": {"S3DataSource": {"S3Uri": "s3://a"}}}, "channel 'rows' is not known"),
        ({"ChannelName": "test", "DataSource": {"S3DataSource": {"S3Uri": "s3://a"}}}, "no channel of training rows"),
        ({"ChannelName": "train", "DataSource": {"FileSystemDataSource": {}}}, "only S3DataSource can be read"),
        ({"ChannelName": "train", "DataSource": {"S3DataSource": {"S3Uri": "s3://a", "S3DataType": "ManifestFile"}}},
         "S3DataType ManifestFile cannot be read"),
        ({"ChannelName": "train", "CompressionType": "Gzip", "DataSource": {"S3DataSource": {"S3Uri": "s3://a"}}},
         "only CompressionType None can be read"),
    ],
)  # fmt: skip
def test_channels_that_cannot_be_read_are_refused(home: Bench, channel: dict[str, Any], expected: str) -> None:
    (failed,) = home.finish(home.order("refused", {"InputDataConfig": [channel]}))
    assert failed.facts["failure"].startswith("ClientError: ")
    assert expected in failed.facts["failure"]


def test_jobs_wait_for_the_one_slot_in_their_order(home: Bench) -> None:
    jobs = [home.order(f"job-{number}", steps=2) for number in range(3)]
    done = home.finish(*jobs)
    started = [job.facts["started"] for job in done]
    ended = [job.facts["ended"] for job in done]
    assert started == sorted(started)
    assert all(before <= after + 0.2 for before, after in zip(ended, started[1:], strict=False))


def test_a_deleted_job_is_ended(home: Bench) -> None:
    job = home.order("deleted", hang_at=1)
    home.until(lambda: home.runs(job))
    home.store.delete(job.id)
    home.until(lambda: not home.supervisor._works)
    assert home.supervisor.shop.slots.free
