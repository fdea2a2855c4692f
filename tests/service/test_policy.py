"""The policy table: every operation needs what it reads and writes, and lists show what the key may see."""

from __future__ import annotations

from typing import Any

import pytest

from luthier.protocol.call import Call
from luthier.protocol.errors import WireError
from luthier.protocol.message import Request
from luthier.rights import EVERYTHING, Rights
from luthier.service import policy
from luthier.service.operations import KNOWN

ANN = Rights.parse(["s3://team/ann/", "jobs:ann-"])
READER = Rights.parse(["read", "s3://team/", "jobs:ann-"])
TRAINING = "/aws/sagemaker/TrainingJobs"
JOB: dict[str, Any] = {
    "TrainingJobName": "ann-1",
    "InputDataConfig": [{"ChannelName": "train", "DataSource": {"S3DataSource": {"S3Uri": "s3://team/ann/rows"}}}],
    "OutputDataConfig": {"S3OutputPath": "s3://team/ann"},
}


def call(service: str, operation: str, **parameters: Any) -> Call:
    request = Request(method="POST", path="/")
    return Call(service=service, operation=operation, parameters=parameters, request=request, request_id="1")


def is_allowed(made: Call, rights: Rights) -> bool:
    try:
        policy.check(made, rights)
    except WireError as error:
        denied = (error.status, error.code)
    else:
        return True
    assert denied == (403, "AccessDenied" if made.service == "s3" else "AccessDeniedException")
    return False


ALLOWED = [
    call("s3", "PutObject", Bucket="team", Key="ann/a"),
    call("s3", "GetObject", Bucket="team", Key="ann/a"),
    call("s3", "HeadBucket", Bucket="team"),
    call("s3", "ListObjectsV2", Bucket="team", Prefix="ann/"),
    call("s3", "ListBuckets"),
    call("s3", "CopyObject", Bucket="team", Key="ann/b", CopySource="team/ann/a"),
    call("s3", "DeleteObjects", Bucket="team", Delete={"Objects": [{"Key": "ann/a"}, {"Key": "ann/b"}]}),
    call("s3", "GetObject", Bucket="jumpstart-cache-prod-us-west-2", Key="models_manifest.json"),
    call("s3", "GetObject", Bucket="local-sagemaker-config", Key="config.yaml"),
    call("sagemaker", "CreateTrainingJob", **JOB),
    call("sagemaker", "DescribeTrainingJob", TrainingJobName="ann-1"),
    call("sagemaker", "ListTags", ResourceArn="arn:aws:sagemaker:us-west-2:1:training-job/ann-1"),
    call("sagemaker", "ListTrainingJobs"),
    call("sagemaker", "ListHubs"),
    call("sagemaker-runtime", "InvokeEndpoint", EndpointName="ann-e"),
    call("sts", "GetCallerIdentity"),
    call("logs", "GetLogEvents", logGroupName=TRAINING, logStreamName="ann-1/algo-1-1"),
    call("logs", "FilterLogEvents", logGroupName="/aws/sagemaker/Endpoints/ann-e"),
    call("cloudwatch", "GetMetricStatistics", Dimensions=[{"Name": "TrainingJobName", "Value": "ann-1"}]),
]
DENIED = [
    call("s3", "PutObject", Bucket="team", Key="bob/a"),
    call("s3", "GetObject", Bucket="other", Key="ann/a"),
    call("s3", "HeadBucket", Bucket="other"),
    call("s3", "DeleteBucket", Bucket="team"),
    call("s3", "CreateBucket", Bucket="other"),
    call("s3", "ListObjectsV2", Bucket="team"),
    call("s3", "ListObjectsV2", Bucket="team", Prefix="ann"),
    call("s3", "ListMultipartUploads", Bucket="team", Prefix="b"),
    call("s3", "CopyObject", Bucket="team", Key="ann/b", CopySource="team/bob/a"),
    call("s3", "UploadPartCopy", Bucket="team", Key="ann/b", CopySource="other/a"),
    call("s3", "DeleteObjects", Bucket="team", Delete={"Objects": [{"Key": "ann/a"}, {"Key": "bob/b"}]}),
    call("s3", "PutObject", Bucket="jumpstart-cache-prod-us-west-2", Key="x"),
    call("sagemaker", "CreateTrainingJob", **{**JOB, "TrainingJobName": "bob-1"}),
    call("sagemaker", "CreateTrainingJob", **{**JOB, "OutputDataConfig": {"S3OutputPath": "s3://team/bob"}}),
    call("sagemaker", "CreateTrainingJob", **{**JOB, "CheckpointConfig": {"S3Uri": "s3://other/c"}}),
    call("sagemaker", "CreateTrainingJob", **{
        **JOB, "InputDataConfig": [{"DataSource": {"S3DataSource": {"S3Uri": "S3://team/bob/rows"}}}]}),
    call("sagemaker", "CreateModel", ModelName="ann-m", PrimaryContainer={"ModelDataUrl": "s3://team/bob/m.tar.gz"}),
    call("sagemaker", "CreateModel", ModelName="ann-m", Containers=[{"ModelDataUrl": "s3://team/bob/m.tar.gz"}]),
    call("sagemaker", "CreateEndpointConfig", EndpointConfigName="ann-c", ProductionVariants=[{"ModelName": "bob-m"}]),
    call("sagemaker", "CreateAutoMLJobV2", AutoMLJobName="ann-a", ModelDeployConfig={"EndpointName": "bob-e"}),
    call("sagemaker", "StopTrainingJob", TrainingJobName="bob-1"),
    call("sagemaker", "AddTags", ResourceArn="arn:aws:sagemaker:us-west-2:1:training-job/bob-1"),
    call("sagemaker-runtime", "InvokeEndpoint", EndpointName="bob-e"),
    call("logs", "GetLogEvents", logGroupName=TRAINING, logStreamName="bob-1/algo-1-1"),
    call("logs", "FilterLogEvents", logGroupName=TRAINING, logStreamNames=["ann-1/algo-1-1", "bob-1/algo-1-1"]),
    call("logs", "DescribeLogStreams", logGroupIdentifier="arn:aws:logs:u:1:log-group:/aws/sagemaker/Endpoints/bob:*"),
    call("cloudwatch", "GetMetricStatistics", Dimensions=[{"Name": "TrainingJobName", "Value": "bob-1"}]),
]  # fmt: skip


@pytest.mark.parametrize("made", ALLOWED, ids=lambda made: made.operation)
def test_what_the_rights_name_is_allowed(made: Call) -> None:
    assert is_allowed(made, ANN)
    assert is_allowed(made, READER) is made.operation.startswith(policy.READING)


@pytest.mark.parametrize("made", DENIED, ids=lambda made: made.operation)
def test_everything_else_is_denied(made: Call) -> None:
    assert not is_allowed(made, ANN)
    assert is_allowed(made, EVERYTHING)


@pytest.mark.parametrize(("service", "operation"), [(name, one) for name in KNOWN for one in KNOWN[name]])
def test_no_operation_changes_anything_with_a_key_for_reading(service: str, operation: str) -> None:
    changes = not operation.startswith(("Describe", "Filter", "Get", "Head", "List", "Simulate"))
    assert is_allowed(call(service, operation), Rights.parse(["read"])) is not changes


def test_lists_leave_out_what_the_key_may_not_see() -> None:
    jobs = {"TrainingJobSummaries": [{"TrainingJobName": "ann-1"}, {"TrainingJobName": "bob-1"}], "NextToken": "t"}
    listing = call("sagemaker", "ListTrainingJobs")
    assert policy.filter_answer(listing, jobs, ANN) == {
        "TrainingJobSummaries": [{"TrainingJobName": "ann-1"}], "NextToken": "t",
    }  # fmt: skip
    assert policy.filter_answer(listing, jobs, EVERYTHING) == jobs
    buckets = {"Buckets": [{"Name": "team"}, {"Name": "other"}]}
    assert policy.filter_answer(call("s3", "ListBuckets"), buckets, ANN) == {"Buckets": [{"Name": "team"}]}
    events = {"events": [{"logStreamName": "ann-1/a"}, {"logStreamName": "bob-1/a"}],
              "searchedLogStreams": [{"logStreamName": "bob-1/a"}]}  # fmt: skip
    filtering = call("logs", "FilterLogEvents", logGroupName=TRAINING)
    assert policy.filter_answer(filtering, events, ANN) == {
        "events": [{"logStreamName": "ann-1/a"}], "searchedLogStreams": [],
    }  # fmt: skip
    groups = {"logGroups": [{"logGroupName": TRAINING}, {"logGroupName": "/aws/sagemaker/Endpoints/bob-e"}]}
    assert policy.filter_answer(call("logs", "DescribeLogGroups"), groups, ANN) == {
        "logGroups": [{"logGroupName": TRAINING}],
    }  # fmt: skip


def test_every_list_of_resources_is_filtered() -> None:
    shared = {"ListHubs", "ListHubContents", "ListCandidatesForAutoMLJob", "ListTags"}  # public, or of one named job
    assert {name for name in KNOWN["sagemaker"] if name.startswith("List")} - shared <= policy.LISTS.keys()
