"""The training job of an AutoML job: described, listed, tagged, logged and stopped."""

from __future__ import annotations

import json
from typing import Any

import pytest
from api.wire_client import OWNER, ROLE, WireClient, automl_channel, automl_job, training_job

from luthier.jobs.logs import TRAINING
from luthier.jobs.resource import Resource


def begun(wire: WireClient, name: str = "auto", **more: Any) -> tuple[Resource, Resource]:
    """An AutoML job that is in training, and its training job."""
    wire.client().create_auto_ml_job_v2(**automl_job(name, **more))
    child = wire.store.find("training-job", OWNER, f"{name}-tr-1")
    assert child is not None
    progress = child.training
    for number, status in enumerate(("Downloading", "Training")):
        progress = progress.with_transition(status, child.created + number)
    changes = {"started": child.created, "transitions": progress.transitions}
    child = wire.store.update(child.id, secondary="Training", progress=changes)
    job = wire.store.find("automl-job", OWNER, name)
    assert job is not None
    return job, child


def names(answer: Any) -> list[str]:
    return [one["TrainingJobName"] for one in answer["TrainingJobSummaries"]]


def test_it_is_described(wire: WireClient) -> None:
    config = {"TextGenerationHyperParameters": {"epochCount": "2"},
              "CompletionCriteria": {"MaxRuntimePerTrainingJobInSeconds": 900}}  # fmt: skip
    job, child = begun(
        wire, config=config, AutoMLJobInputDataConfig=[automl_channel(ContentType="text/csv;header=present")]
    )
    told = wire.client().describe_training_job(TrainingJobName="auto-tr-1")
    assert told["TrainingJobArn"].endswith(":training-job/auto-tr-1")
    assert told["AutoMLJobArn"] == job.arn
    assert (job.status, job.secondary) == ("InProgress", "TrainingModels")
    assert (told["TrainingJobStatus"], told["SecondaryStatus"]) == ("InProgress", "Training")
    assert [one["Status"] for one in told["SecondaryStatusTransitions"]] == ["Starting", "Downloading", "Training"]
    assert told["HyperParameters"] == {"epochCount": "2"}
    assert told["StoppingCondition"] == {"MaxRuntimeInSeconds": 900}
    assert told["RoleArn"] == ROLE
    (channel,) = told["InputDataConfig"]
    assert (channel["ChannelName"], channel["ContentType"]) == ("training", "text/csv;header=present")
    expected = "s3://bucket/out/auto/auto-trial-1/output/model.tar.gz"
    assert told["ModelArtifacts"] == {"S3ModelArtifacts": expected}
    assert told["ResourceConfig"]["InstanceCount"] == 1  # which the SDKs' log readers ask for
    wire.store.update(child.id, "Completed", secondary="Completed", progress={
        "ended": job.created + 60, "artifact": expected,
        "metrics": ({"MetricName": "x", "Value": 1.0, "Timestamp": 1},),
    })  # fmt: skip
    told = wire.client().describe_training_job(TrainingJobName="auto-tr-1")
    assert (told["TrainingJobStatus"], told["TrainingTimeInSeconds"]) == ("Completed", 60)
    assert told["FinalMetricDataList"][0]["Value"] == 1.0
    whole = wire.client().describe_auto_ml_job_v2(AutoMLJobName="auto")
    assert (whole["AutoMLJobStatus"], whole["AutoMLJobSecondaryStatus"]) == ("Completed", "Completed")
    assert whole["BestCandidate"]["InferenceContainers"][0]["ModelDataUrl"] == expected


def test_it_is_there_from_the_creation_on(wire: WireClient) -> None:
    client = wire.client()
    client.create_auto_ml_job_v2(**automl_job("auto"))
    assert client.describe_training_job(TrainingJobName="auto-tr-1")["SecondaryStatus"] == "Starting"
    assert names(client.list_training_jobs()) == ["auto-tr-1"]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({"SortBy": "Name"}, ["a", "auto-b-tr-1", "auto-tr-1", "b"]),
        ({"SortBy": "Name", "SortOrder": "Descending"}, ["b", "auto-tr-1", "auto-b-tr-1", "a"]),
        ({"SortBy": "CreationTime"}, ["b", "auto-tr-1", "a", "auto-b-tr-1"]),
        ({"NameContains": "o-tr"}, ["auto-tr-1"]),
        ({"StatusEquals": "Stopping"}, ["auto-b-tr-1"]),
    ],
)
@pytest.mark.parametrize("size", [1, 3, 100])
def test_they_are_listed_among_the_others(
    wire: WireClient, wanted: dict[str, str], expected: list[str], size: int
) -> None:  # fmt: skip
    client = wire.client()
    client.create_training_job(**training_job("b"))
    begun(wire, "auto")
    client.create_training_job(**training_job("a"))
    wire.store.update(begun(wire, "auto-b")[1].id, "Stopping")
    found: list[str] = []
    more: dict[str, str] = {}
    while True:
        page = client.list_training_jobs(**wanted, MaxResults=size, **more)
        found += names(page)
        assert len(page["TrainingJobSummaries"]) <= size
        if "NextToken" not in page:
            break
        more = {"NextToken": page["NextToken"]}
    assert found == expected


def test_its_name_is_taken(wire: WireClient) -> None:
    client = wire.client()
    begun(wire)
    assert wire.refusal(client.create_training_job, **training_job("auto-tr-1"))[0] == "ResourceInUse"
    client.create_training_job(**training_job("other-tr-1"))
    code, text = wire.refusal(client.create_auto_ml_job_v2, **automl_job("other"))
    assert code == "ResourceInUse"
    assert "other-tr-1" in text
    assert [job["AutoMLJobName"] for job in client.list_auto_ml_jobs()["AutoMLJobSummaries"]] == ["auto"]


def test_it_is_stopped_with_its_automl_job_and_never_deleted_alone(wire: WireClient) -> None:
    client = wire.client()
    job, _ = begun(wire)
    code, text = wire.refusal(client.delete_training_job, TrainingJobName="auto-tr-1")
    assert (code, "is part of" in text) == ("ValidationException", True)
    client.stop_training_job(TrainingJobName="auto-tr-1")
    assert client.describe_auto_ml_job_v2(AutoMLJobName="auto")["AutoMLJobStatus"] == "Stopping"
    assert wire.store.get(job.id) is not None


def test_tags_and_logs_are_found_under_its_name(wire: WireClient) -> None:
    client = wire.client()
    job, child = begun(wire)
    arn = client.describe_training_job(TrainingJobName="auto-tr-1")["TrainingJobArn"]
    client.add_tags(ResourceArn=arn, Tags=[{"Key": "team", "Value": "x"}])
    assert client.list_tags(ResourceArn=arn)["Tags"] == [{"Key": "team", "Value": "x"}]
    assert client.list_tags(ResourceArn=job.arn)["Tags"] == []
    events = wire.service.settings.jobs / child.id / "logs" / "events.jsonl"
    events.parent.mkdir(parents=True)
    events.write_text(json.dumps({"timestamp": 1, "message": "a line", "offset": 7}) + "\n")
    logs = wire.client("logs")
    (stream,) = logs.describe_log_streams(logGroupName=TRAINING, logStreamNamePrefix="auto-tr-1/")["logStreams"]
    page = logs.get_log_events(logGroupName=TRAINING, logStreamName=stream["logStreamName"], startFromHead=True)
    assert [event["message"] for event in page["events"]] == ["a line"]
    everything = logs.describe_log_streams(logGroupName=TRAINING)["logStreams"]
    assert [one["logStreamName"].partition("/")[0] for one in everything] == ["auto"]


def test_a_stop_is_the_training_jobs(wire: WireClient) -> None:
    client = wire.client()
    begun(wire)
    client.stop_auto_ml_job(AutoMLJobName="auto")
    assert client.describe_training_job(TrainingJobName="auto-tr-1")["TrainingJobStatus"] == "Stopping"
    client.stop_auto_ml_job(AutoMLJobName="auto")
    assert client.describe_auto_ml_job_v2(AutoMLJobName="auto")["AutoMLJobStatus"] == "Stopping"


def test_a_stop_during_deployment_settles_the_automl_job(wire: WireClient) -> None:
    client = wire.client()
    _, child = begun(wire, ModelDeployConfig={"EndpointName": "mine"})
    wire.store.update(child.id, "Completed", secondary="Completed", progress={"artifact": "s3://bucket/model.tar.gz"})
    told = client.describe_auto_ml_job_v2(AutoMLJobName="auto")
    assert (told["AutoMLJobStatus"], told["AutoMLJobSecondaryStatus"]) == ("InProgress", "DeployingModel")
    client.stop_auto_ml_job(AutoMLJobName="auto")
    told = client.describe_auto_ml_job_v2(AutoMLJobName="auto")
    assert (told["AutoMLJobStatus"], told["BestCandidate"]["CandidateName"]) == ("Stopped", "auto-trial-1")
    assert wire.refusal(client.stop_auto_ml_job, AutoMLJobName="auto")[0] == "ValidationException"
