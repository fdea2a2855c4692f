"""The training job of an AutoML job: described, listed, tagged, logged and stopped as what the AutoML job knows."""

from __future__ import annotations

import json
from typing import Any

import pytest
from api.desk import OWNER, ROLE, Desk, automl_channel, automl_job, training_job

from luthier.jobs.logs import TRAINING
from luthier.jobs.store import Resource
from luthier.supervisor.transitions import moved


def begun(desk: Desk, name: str = "auto", **more: Any) -> Resource:
    """An AutoML job that is in training."""
    desk.client().create_auto_ml_job_v2(**automl_job(name, **more))
    job = desk.store.find("automl-job", OWNER, name)
    assert job is not None
    stations: list[dict[str, Any]] = []
    for number, station in enumerate(("Starting", "PreTraining", "TrainingModels")):
        stations = moved(stations, station, job.created + number)
    facts = {"started": job.created, "transitions": stations}
    return desk.store.update(job.id, secondary="TrainingModels", facts=facts)


def names(answer: Any) -> list[str]:
    return [one["TrainingJobName"] for one in answer["TrainingJobSummaries"]]


def test_it_is_described_from_what_the_automl_job_knows(desk: Desk) -> None:
    config = {"TextGenerationHyperParameters": {"epochCount": "2"},
              "CompletionCriteria": {"MaxRuntimePerTrainingJobInSeconds": 900}}  # fmt: skip
    job = begun(desk, config=config, AutoMLJobInputDataConfig=[automl_channel(ContentType="text/csv;header=present")])
    told = desk.client().describe_training_job(TrainingJobName="auto-tr-1")
    assert told["TrainingJobArn"].endswith(":training-job/auto-tr-1")
    assert told["AutoMLJobArn"] == job.arn
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
    desk.store.update(job.id, "Completed", secondary="Completed", facts={
        "ended": job.created + 60, "artifact": expected, "metrics": [{"MetricName": "x", "Value": 1.0, "Timestamp": 1}],
    })  # fmt: skip
    told = desk.client().describe_training_job(TrainingJobName="auto-tr-1")
    assert (told["TrainingJobStatus"], told["TrainingTimeInSeconds"]) == ("Completed", 60)
    assert told["FinalMetricDataList"][0]["Value"] == 1.0


def test_there_is_none_before_the_automl_job_is_worked_on(desk: Desk) -> None:
    client = desk.client()
    client.create_auto_ml_job_v2(**automl_job("auto"))
    assert desk.refusal(client.describe_training_job, TrainingJobName="auto-tr-1")[0] == "ValidationException"
    assert names(client.list_training_jobs()) == []


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
    desk: Desk, wanted: dict[str, str], expected: list[str], size: int
) -> None:  # fmt: skip
    client = desk.client()
    client.create_training_job(**training_job("b"))
    begun(desk, "auto")
    client.create_training_job(**training_job("a"))
    desk.store.update(begun(desk, "auto-b").id, "Stopping")
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


def test_its_name_is_taken(desk: Desk) -> None:
    client = desk.client()
    begun(desk)
    assert desk.refusal(client.create_training_job, **training_job("auto-tr-1"))[0] == "ResourceInUse"
    client.create_training_job(**training_job("other-tr-1"))
    code, text = desk.refusal(client.create_auto_ml_job_v2, **automl_job("other"))
    assert code == "ResourceInUse"
    assert "other-tr-1" in text


def test_it_is_stopped_with_its_automl_job_and_never_deleted_alone(desk: Desk) -> None:
    client = desk.client()
    job = begun(desk)
    code, text = desk.refusal(client.delete_training_job, TrainingJobName="auto-tr-1")
    assert (code, "is part of" in text) == ("ValidationException", True)
    client.stop_training_job(TrainingJobName="auto-tr-1")
    assert client.describe_auto_ml_job_v2(AutoMLJobName="auto")["AutoMLJobStatus"] == "Stopping"
    assert desk.store.get(job.id) is not None


def test_tags_and_logs_are_found_under_its_name(desk: Desk) -> None:
    client = desk.client()
    job = begun(desk)
    arn = client.describe_training_job(TrainingJobName="auto-tr-1")["TrainingJobArn"]
    client.add_tags(ResourceArn=arn, Tags=[{"Key": "team", "Value": "x"}])
    assert client.list_tags(ResourceArn=arn)["Tags"] == [{"Key": "team", "Value": "x"}]
    assert client.list_tags(ResourceArn=job.arn)["Tags"] == []
    events = desk.service.settings.jobs / job.id / "logs" / "events.jsonl"
    events.parent.mkdir(parents=True)
    events.write_text(json.dumps({"timestamp": 1, "message": "a line", "offset": 7}) + "\n")
    logs = desk.client("logs")
    (stream,) = logs.describe_log_streams(logGroupName=TRAINING, logStreamNamePrefix="auto-tr-1/")["logStreams"]
    page = logs.get_log_events(logGroupName=TRAINING, logStreamName=stream["logStreamName"], startFromHead=True)
    assert [event["message"] for event in page["events"]] == ["a line"]
    everything = logs.describe_log_streams(logGroupName=TRAINING)["logStreams"]
    assert [one["logStreamName"].partition("/")[0] for one in everything] == ["auto"]
