"""Tags by ARN."""

from __future__ import annotations

from typing import Any

import pytest
from api.wire_client import ACCOUNT, WireClient, automl_job, training_job

ARN = f"arn:aws:sagemaker:us-east-1:{ACCOUNT}"


def test_tags_come_and_go(wire: WireClient) -> None:
    client = wire.client()
    arn = client.create_training_job(**training_job("Upper", Tags=[{"Key": "b", "Value": "1"}]))["TrainingJobArn"]
    given = client.add_tags(ResourceArn=arn, Tags=[{"Key": "a", "Value": "ü"}, {"Key": "b", "Value": "2"}])
    wanted = [{"Key": "a", "Value": "ü"}, {"Key": "b", "Value": "2"}]
    assert given["Tags"] == wanted
    assert client.list_tags(ResourceArn=arn)["Tags"] == wanted
    client.delete_tags(ResourceArn=arn, TagKeys=["b", "never"])
    assert client.list_tags(ResourceArn=arn)["Tags"] == wanted[:1]


def test_a_resource_has_fifty_at_most(wire: WireClient) -> None:
    client = wire.client()
    arn = client.create_training_job(**training_job())["TrainingJobArn"]
    client.add_tags(ResourceArn=arn, Tags=[{"Key": str(number), "Value": ""} for number in range(50)])
    client.add_tags(ResourceArn=arn, Tags=[{"Key": "7", "Value": "again"}])
    code, message = wire.refusal(client.add_tags, ResourceArn=arn, Tags=[{"Key": "x", "Value": ""}])
    assert (code, message) == ("ResourceLimitExceeded", f"{arn} would have 51 tags; a resource has at most 50")
    assert len(client.list_tags(ResourceArn=arn)["Tags"]) == 50


def test_a_key_is_given_once(wire: WireClient) -> None:
    client = wire.client()
    twice = [{"Key": "a", "Value": "1"}, {"Key": "a", "Value": "2"}]
    expected = ("ValidationException", "Tag keys must be unique: 'a' is given 2 times.")
    assert wire.refusal(client.create_training_job, **training_job(Tags=twice)) == expected
    assert wire.refusal(client.create_auto_ml_job_v2, **automl_job(Tags=twice)) == expected
    arn = client.create_training_job(**training_job())["TrainingJobArn"]
    assert wire.refusal(client.add_tags, ResourceArn=arn, Tags=twice) == expected


@pytest.mark.parametrize(
    ("arn", "message"),
    [
        (f"{ARN}:training-job/none", f"Could not find resource {ARN}:training-job/none."),
        (f"{ARN}:pipeline/x", f"Invalid ARN {ARN}:pipeline/x: expected that of a resource in us-east-1."),
        (f"arn:aws:sagemaker:eu-west-1:{ACCOUNT}:model/x", "Invalid ARN arn:aws:sagemaker:eu-west-1:"),
        ("arn:aws:sagemaker:us-east-1:999999999999:model/x", "Invalid ARN arn:aws:sagemaker:us-east-1:999999999999"),
    ],
)
@pytest.mark.parametrize("operation", ["add_tags", "list_tags", "delete_tags"])
def test_refusals(wire: WireClient, operation: str, arn: str, message: str) -> None:
    more: dict[str, dict[str, Any]] = {
        "add_tags": {"Tags": [{"Key": "a", "Value": ""}]}, "list_tags": {}, "delete_tags": {"TagKeys": ["a"]},
    }  # fmt: skip
    code, told = wire.refusal(getattr(wire.client(), operation), ResourceArn=arn, **more[operation])
    assert code == "ValidationException"
    assert told.startswith(message)
