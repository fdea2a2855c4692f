"""CloudWatch Logs by the calls that the SDKs make while a job runs."""

from __future__ import annotations

import json
from typing import Any

import pytest
from api.wire_client import ACCOUNT, OWNER, WireClient, training_job

GROUP = "/aws/sagemaker/TrainingJobs"


def written(wire: WireClient, name: str, count: int) -> str:
    """A job whose log has `count` lines; the name of its stream."""
    wire.client().create_training_job(**training_job(name))
    made = wire.store.find("training-job", OWNER, name)
    assert made is not None
    file = wire.service.settings.jobs / made.id / "logs" / "events.jsonl"
    file.parent.mkdir(parents=True)
    lines = ({"timestamp": 1000 + number, "message": f"line {number}"} for number in range(count))
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return f"{name}/algo-1-{int(made.created)}"


def test_a_job_s_log_is_followed_as_the_sdk_does(wire: WireClient) -> None:
    stream = written(wire, "job", 25)
    client = wire.client("logs")
    streams = client.describe_log_streams(
        logGroupName=GROUP, logStreamNamePrefix="job/", orderBy="LogStreamName", limit=1
    )["logStreams"]
    assert [(found["logStreamName"], found["firstEventTimestamp"]) for found in streams] == [(stream, 1000)]
    seen: list[str] = []
    token: dict[str, str] = {}
    while True:
        page = client.get_log_events(
            logGroupName=GROUP, logStreamName=stream, startFromHead=True, limit=10, **token
        )  # fmt: skip
        seen += [event["message"] for event in page["events"]]
        if token.get("nextToken") == page["nextForwardToken"]:
            break
        token = {"nextToken": page["nextForwardToken"]}
    assert seen == [f"line {number}" for number in range(25)]


def test_events_are_filtered(wire: WireClient) -> None:
    stream = written(wire, "job", 30)
    written(wire, "other", 5)
    client = wire.client("logs")
    found = client.filter_log_events(logGroupName=GROUP, logStreamNames=[stream], filterPattern='"line 2"', limit=100)
    matched = ["line 2", *(f"line {number}" for number in range(20, 30))]
    assert [event["message"] for event in found["events"]] == matched
    assert found["events"][0]["logStreamName"] == stream
    messages: list[str] = []
    token: dict[str, str] = {}
    while True:
        page = client.filter_log_events(logGroupName=GROUP, logStreamNamePrefix="other/", limit=2, **token)
        messages += [event["message"] for event in page["events"]]
        if "nextToken" not in page:
            break
        token = {"nextToken": page["nextToken"]}
    assert messages == [f"line {number}" for number in range(5)]


def test_groups_and_streams_are_listed_in_pages(wire: WireClient) -> None:
    names = sorted(written(wire, name, 1) for name in ("a", "b", "c"))
    client = wire.client("logs")
    (group,) = client.describe_log_groups(logGroupNamePrefix="/aws/sagemaker/T")["logGroups"]
    assert group["logGroupName"] == GROUP
    assert group["logGroupArn"] == f"arn:aws:logs:us-east-1:{ACCOUNT}:log-group:{GROUP}"
    first = client.describe_log_streams(logGroupName=GROUP, limit=2)
    second = client.describe_log_streams(logGroupIdentifier=group["logGroupArn"], limit=2)
    assert [found["logStreamName"] for found in first["logStreams"]] == names[:2]
    assert first["logStreams"] == second["logStreams"]
    rest = client.describe_log_streams(logGroupName=GROUP, limit=2, nextToken=first["nextToken"])
    assert [found["logStreamName"] for found in rest["logStreams"]] == names[2:]
    last = client.describe_log_streams(logGroupName=GROUP, descending=True)["logStreams"]
    assert [found["logStreamName"] for found in last] == names[::-1]


@pytest.mark.parametrize(
    ("operation", "parameters", "code"),
    [
        ("describe_log_streams", {"logGroupName": "/none"}, "ResourceNotFoundException"),
        ("get_log_events", {"logGroupName": GROUP, "logStreamName": "job/x"}, "ResourceNotFoundException"),
        ("filter_log_events", {"logGroupName": "/aws/sagemaker/Endpoints/none"}, "ResourceNotFoundException"),
        ("describe_log_streams", {"logGroupName": GROUP, "nextToken": "x"}, "InvalidParameterException"),
        ("describe_log_streams", {}, "InvalidParameterException"),
        ("describe_log_streams", {"logGroupName": GROUP, "orderBy": "LastEventTime", "logStreamNamePrefix": "x"},
         "InvalidParameterException"),
        ("filter_log_events", {"logGroupName": GROUP, "logStreamNames": ["x"], "logStreamNamePrefix": "x"},
         "InvalidParameterException"),
    ],
)  # fmt: skip
def test_refusals(wire: WireClient, operation: str, parameters: dict[str, Any], code: str) -> None:
    assert wire.refusal(getattr(wire.client("logs"), operation), **parameters)[0] == code
