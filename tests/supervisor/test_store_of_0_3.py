"""A database and job folders that version 0.3 left: answered as 0.3 answered them, and seen through."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from api.wire_client import WireClient
from supervisor.supervisor_harness import OWNER, Harness, supervisor_harness

from luthier.jobs import database
from luthier.jobs.store import Store

SAMPLES = Path(__file__).parents[1] / "samples" / "store_0_3"
ANSWERS: dict[str, Any] = json.loads((SAMPLES / "answers.json").read_text("utf-8"))
CHANGING = ("TrainingTimeInSeconds", "BillableTimeInSeconds")
CHILDREN = [f"{name}-tr-1" for name in ("auto-done", "auto-failed", "auto-deployed", "auto-undeployed", "auto-stopped",
                                        "auto-running", "auto-queued")]  # fmt: skip


def restore(path: Path) -> None:
    path.parent.mkdir(parents=True)
    connection = sqlite3.connect(path)
    connection.executescript((SAMPLES / "store.sql").read_text("utf-8"))
    connection.close()


@pytest.fixture(scope="module")
def wire(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WireClient]:
    folder = tmp_path_factory.mktemp("0.3") / "home"
    restore(folder / "luthier.sqlite")
    opened = WireClient(folder)
    yield opened
    opened.store.close()


def plain(answer: Any) -> Any:
    """An answer as it is in answers.json, without what changes from moment to moment."""
    if isinstance(answer, dict):
        return {name: plain(value) for name, value in answer.items() if name not in (*CHANGING, "ResponseMetadata")}
    if isinstance(answer, list):
        return [plain(value) for value in answer]
    return answer if answer is None or isinstance(answer, (str, int, float, bool)) else str(answer)


@pytest.mark.parametrize(
    ("operation", "name"),
    [
        ("describe_training_job", "TrainingJobName"),
        ("describe_auto_ml_job_v2", "AutoMLJobName"),
        ("describe_endpoint", "EndpointName"),
        ("describe_model", "ModelName"),
        ("describe_endpoint_config", "EndpointConfigName"),
    ],
)
def test_what_0_3_described_is_described(wire: WireClient, operation: str, name: str) -> None:
    assert ANSWERS[operation]
    for resource, expected in ANSWERS[operation].items():
        answer = plain(getattr(wire.client(), operation)(**{name: resource}))
        if resource == "queued":  # the AutoML jobs' training jobs now wait in the same queue
            message = "Waiting for a device: place 1 in the queue"
            answer["SecondaryStatusTransitions"][-1]["StatusMessage"] = message
        if answer.get("ModelArtifacts") == {
            "S3ModelArtifacts": ""
        }:  # 0.3 gave the address of an artifact without object
            assert answer["TrainingJobStatus"] in ("Failed", "Stopped")
            answer["ModelArtifacts"] = expected["ModelArtifacts"]
        assert answer == plain(expected), resource


@pytest.mark.parametrize(
    ("operation", "items", "name"),
    [
        ("list_training_jobs", "TrainingJobSummaries", "TrainingJobName"),
        ("list_auto_ml_jobs", "AutoMLJobSummaries", "AutoMLJobName"),
        ("list_endpoints", "Endpoints", "EndpointName"),
        ("list_models", "Models", "ModelName"),
        ("list_endpoint_configs", "EndpointConfigs", "EndpointConfigName"),
    ],
)
def test_what_0_3_listed_is_listed(wire: WireClient, operation: str, items: str, name: str) -> None:
    listed = {item[name]: item for item in plain(getattr(wire.client(), operation)(MaxResults=100)[items])}
    if operation == "list_training_jobs":  # 0.3 showed it once somebody worked on it
        assert listed.pop("auto-queued-tr-1")["SecondaryStatus"] == "Starting"
    assert listed == {item[name]: item for item in plain(ANSWERS[operation])}


def test_every_automl_job_has_its_training_job_and_keeps_its_tags(wire: WireClient) -> None:
    client = wire.client()
    for job in client.list_auto_ml_jobs(MaxResults=100)["AutoMLJobSummaries"]:
        name = job["AutoMLJobName"]
        assert client.describe_training_job(TrainingJobName=f"{name}-tr-1")["AutoMLJobArn"] == job["AutoMLJobArn"]
        assert client.list_tags(ResourceArn=job["AutoMLJobArn"])["Tags"] == [{"Key": "team", "Value": name}]


def test_specs_are_what_the_requests_amount_to(wire: WireClient) -> None:
    job = wire.store.find("training-job", OWNER, "queued")
    child = wire.store.find("training-job", OWNER, "auto-queued-tr-1")
    assert job is not None
    assert child is not None
    assert job.job.channels == child.job.channels == {"training": "s3://data/rows"}
    assert (job.job.output, job.job.max_seconds) == ("s3://results/out/queued/output/", 600)
    assert child.job.output == "s3://results/out/auto-queued/auto-queued-trial-1/output/"
    assert (child.job.kind, child.job.max_rows, child.job.max_truncated) == ("autopilot", 1000, 0.6)
    assert child.job.hyperparameters == {"validation_split_ratio": "0.2", "max_input_length": "1024"}


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[Harness]:
    """The home of 0.3, with its running jobs' folders as they were."""
    home = tmp_path / "home"
    restore(home / "luthier.sqlite")
    for folder in (SAMPLES / "jobs").iterdir():
        job = home / "jobs" / folder.name
        shutil.copytree(folder, job)
        (job / "input" / "data").mkdir()
        (job / "input" / "data" / "training").symlink_to(job / "input" / "s3" / "training")
    with supervisor_harness(tmp_path, slots=("cpu", "cpu")) as opened:
        yield opened


def test_queued_and_half_done_jobs_are_seen_through(harness: Harness) -> None:
    for name in ("own", "mine"):  # their artifacts are not here
        endpoint = harness.store.find("endpoint", OWNER, name)
        assert endpoint is not None
        harness.store.delete(endpoint.id)
    names = ("running", "queued", "auto-running-tr-1", "auto-queued-tr-1")
    jobs = [harness.store.find("training-job", OWNER, name) for name in names]
    automl_jobs = [harness.store.find("automl-job", OWNER, name) for name in ("auto-running", "auto-queued")]
    harness.supervisor.recover()
    done = harness.run_to_end(*[job for job in (*jobs, *automl_jobs) if job is not None])
    assert [(job.status, job.secondary) for job in done] == [("Completed", "Completed")] * 6
    for job in done[:4]:
        assert harness.objects.path(job.job.artifact).exists()
        assert [transition.status for transition in job.training.transitions][-1] == "Completed"
        assert harness.run_count(job) == (2 if "running" in job.name else 1)  # 0.3 started it first
    assert (harness.folder(done[0]) / "logs" / "engine.log").read_text().count("resuming after step 2") == 1
    assert all(job.automl.candidate is not None for job in done[4:])
    assert (done[4].automl.endpoint, done[4].automl.deployed) == ("later", True)


def test_postgresql_is_carried_over_too(database_url: str, tmp_path: Path) -> None:
    """The rows of 0.3, copied into a database of 0.3 of either kind."""
    restore(tmp_path / "home" / "0.3.sqlite")
    source = sa.create_engine(f"sqlite:///{tmp_path / 'home' / '0.3.sqlite'}")
    table = sa.Table("resources", sa.MetaData(), autoload_with=source)
    with source.connect() as connection:
        rows = [dict(row._mapping) for row in connection.execute(sa.select(table))]
    source.dispose()
    engine = database._engine(database_url)
    database.upgrade(engine, "0003")
    with engine.begin() as connection:
        connection.execute(sa.Table("resources", sa.MetaData(), autoload_with=engine).insert(), rows)
    engine.dispose()
    store = Store.open(database_url)
    try:
        for name in CHILDREN:
            child = store.find("training-job", OWNER, name)
            assert child is not None
            parent = store.get(str(child.parent))
            assert parent is not None
            assert (parent.kind, parent.name) == ("automl-job", name.removesuffix("-tr-1"))
        assert len(store.held_by_others("new")) == 4
    finally:
        store.close()
