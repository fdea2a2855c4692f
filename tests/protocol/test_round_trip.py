"""Every operation that a user's work touches, through a real botocore client and back: nothing is lost on the way."""

from __future__ import annotations

from typing import Any

import pytest
from botocore import xform_name
from live_wire import LiveWire
from shape_samples import MOMENT, sample

from luthier.protocol import model
from luthier.protocol.call import Call

SAGEMAKER = (
    "CreateAutoMLJobV2 DescribeAutoMLJobV2 ListAutoMLJobs StopAutoMLJob ListCandidatesForAutoMLJob CreateTrainingJob "
    "DescribeTrainingJob ListTrainingJobs StopTrainingJob CreateModel DescribeModel DeleteModel ListModels "
    "CreateEndpointConfig DescribeEndpointConfig DeleteEndpointConfig ListEndpointConfigs CreateEndpoint "
    "DescribeEndpoint "
    "DeleteEndpoint ListEndpoints AddTags ListTags DeleteTags DescribeHubContent ListHubContents UpdateEndpoint"
)
MUST = {
    "sagemaker": SAGEMAKER,
    "sts": "GetCallerIdentity",
    "iam": "GetRole SimulatePrincipalPolicy",
    "cloudwatch": "GetMetricStatistics ListMetrics GetMetricData",
    "logs": "DescribeLogStreams GetLogEvents FilterLogEvents",
}
CASES = [(service, name) for service, names in MUST.items() for name in names.split()]


@pytest.mark.parametrize(("service", "name"), CASES)
def test_an_operation_goes_there_and_back(wire: LiveWire, service: str, name: str) -> None:
    operation = model.operation(service, name)
    given = sample(operation.input_shape) if operation.input_shape else {}
    answered = sample(operation.output_shape) if operation.output_shape else {}
    wire.echo.answers[name] = answered
    response = getattr(wire.client(service), xform_name(name))(**given)
    call = wire.echo.calls[-1]
    assert (call.service, call.operation, call.region) == (service, name, "eu-west-1")
    assert call.parameters == given
    response.pop("ResponseMetadata")
    response.pop("nextToken", None) if service == "logs" else None
    answered.pop("nextToken", None) if service == "logs" else None
    assert _utc(response) == answered


def _utc(value: Any) -> Any:
    """The value with moments that are the samples' as the samples have them, whatever zone the client shows."""
    if isinstance(value, dict):
        return {key: _utc(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_utc(entry) for entry in value]
    return MOMENT if value == MOMENT else value


S3_GIVEN: dict[str, dict[str, Any]] = {
    "ListBuckets": {},
    "CreateBucket": {"CreateBucketConfiguration": {"LocationConstraint": "eu-west-1"}},
    "HeadBucket": {},
    "GetBucketLocation": {},
    "DeleteBucket": {},
    "PutObject": {"Key": "a b/c+d/ü.txt", "Metadata": {"colour": "red"}, "ContentType": "text/csv", "IfNoneMatch": "*"},
    "GetObject": {"Key": "folder/", "Range": "bytes=0-9", "IfModifiedSince": MOMENT},
    "HeadObject": {"Key": "k/k/c", "PartNumber": 1},
    "DeleteObject": {"Key": "a//b"},
    "DeleteObjects": {"Delete": {"Objects": [{"Key": "a&<b>"}, {"Key": "ü"}], "Quiet": True}},
    "CopyObject": {
        "Key": "to",
        "CopySource": "other/from-here",
        "MetadataDirective": "REPLACE",
        "Metadata": {"a": "b"},
    },
    "ListObjects": {"Prefix": "a b/", "Delimiter": "/", "MaxKeys": 3, "Marker": "m"},
    "ListObjectsV2": {"Prefix": "ü+ ", "ContinuationToken": "a=b&c", "StartAfter": "x", "FetchOwner": True},
    "CreateMultipartUpload": {"Key": "big", "ContentType": "application/gzip"},
    "UploadPart": {"Key": "big", "PartNumber": 2, "UploadId": "u/1"},
    "CompleteMultipartUpload": {
        "Key": "big",
        "UploadId": "u",
        "MultipartUpload": {"Parts": [{"ETag": '"a"', "PartNumber": 1}, {"ETag": '"b"', "PartNumber": 2}]},
    },
    "AbortMultipartUpload": {"Key": "big", "UploadId": "u"},
    "ListParts": {"Key": "big", "UploadId": "u", "MaxParts": 10},
    "ListMultipartUploads": {"Prefix": "b"},
    "ListObjectVersions": {"Prefix": "b"},
    "GetObjectAcl": {"Key": "k"},
    "GetObjectTagging": {"Key": "k"},
    "PutObjectTagging": {"Key": "k", "Tagging": {"TagSet": [{"Key": "a", "Value": "b"}]}},
}
WITHOUT_BUCKET = ("ListBuckets",)


@pytest.mark.parametrize("name", S3_GIVEN)
def test_an_operation_of_s3_goes_there_and_back(wire: LiveWire, name: str) -> None:
    given = dict(S3_GIVEN[name]) if name in WITHOUT_BUCKET else {"Bucket": "a-bucket.x", **S3_GIVEN[name]}
    operation = model.operation("s3", name)
    answered = sample(operation.output_shape) if operation.output_shape else {}
    for member in ("EncodingType", "ContentRange", "Expires", "ExpiresString", "ContentLength", "Body", "Policy"):
        answered.pop(member, None)
    uploaded: list[bytes] = []

    def operate(call: Call) -> Any:
        if name in ("PutObject", "UploadPart"):
            uploaded.append(b"".join(call.parameters["Body"]))
        return answered

    wire.echo.answers[name] = operate
    body = {"Body": b"\x00\xff" * 1000} if name in ("PutObject", "UploadPart") else {}
    # Otherwise the client asks for checksums of its own choice in the answer.
    client = wire.client("s3", config={"response_checksum_validation": "when_required"})
    response = getattr(client, xform_name(name))(**given, **body)
    parameters = wire.echo.calls[-1].parameters
    assert wire.echo.calls[-1].operation == name
    assert {key: parameters[key] for key in given} == given
    assert uploaded == ([body["Body"]] if body else [])
    metadata = response.pop("ResponseMetadata")
    assert metadata["RequestId"] == wire.echo.calls[-1].request_id
    response.pop("Body", None)
    response.pop("ContentLength", None)
    assert _utc(response) == answered
