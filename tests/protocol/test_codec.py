"""Requests and responses in every protocol: strict values, streams, headers, times in UTC, errors in every form."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from xml.etree import ElementTree

import pytest
from botocore.eventstream import EventStreamBuffer

from luthier.errors import DataError, LuthierError, ModelNotFoundError, Problem
from luthier.protocol import codec, model
from luthier.protocol.errors import WireError
from luthier.protocol.message import Request, Response


def parse(service: str, operation: str, request: Request, **labels: str) -> dict[str, Any]:
    return codec.parse(model.operation(service, operation), request, labels)


def serialise(service: str, operation: str, result: dict[str, Any]) -> Response:
    return codec.serialise(model.operation(service, operation), result, "id-1")


def whole(response: Response) -> bytes:
    return response.body if isinstance(response.body, bytes) else b"".join(response.body)


def test_a_streamed_body_is_not_read() -> None:
    chunks = (bytes(1 // 0) for _ in range(1))
    parsed = parse("s3", "PutObject", Request(method="PUT", path="/b/k", chunks=chunks), Bucket="b", Key="k")
    assert parsed["Body"] is chunks


def test_an_empty_body_is_a_body() -> None:
    request = Request(method="POST", path="/endpoints/e/invocations", headers={"content-type": "text/csv"})
    parsed = parse("sagemaker-runtime", "InvokeEndpoint", request, EndpointName="e")
    assert parsed == {"EndpointName": "e", "ContentType": "text/csv", "Body": b""}


def test_metadata_names_stay_as_they_were_sent() -> None:
    headers = {"x-amz-meta-colour_of-x": "ä", "x-amz-meta-n": "1"}
    parsed = parse("s3", "HeadObject", Request(method="HEAD", path="/b/k"), Bucket="b", Key="k")
    assert parsed == {"Bucket": "b", "Key": "k"}
    put = parse("s3", "PutObject", Request(method="PUT", path="/b/k", headers=headers), Bucket="b", Key="k")
    assert put["Metadata"] == {"colour_of-x": "ä", "n": "1"}


@pytest.mark.parametrize(
    ("operation", "query", "headers"),
    [
        ("ListObjectsV2", "max-keys=ten", {}),
        ("ListObjectsV2", "max-keys=1_0", {}),
        ("ListObjectsV2", "max-keys=٣", {}),
        ("ListObjectsV2", "max-keys=99999999999", {}),
        ("ListObjectsV2", "max-keys=1e3", {}),
        ("ListObjectsV2", "max-keys=", {}),
        ("GetObject", "partNumber=x", {}),
        ("GetObject", "", {"if-modified-since": "yesterday"}),
        ("PutObject", "", {"content-length": "9" * 30}),
    ],
)
def test_values_of_another_type(operation: str, query: str, headers: dict[str, str]) -> None:
    with pytest.raises(WireError) as caught:
        parse("s3", operation, Request(method="GET", path="/b/k", query=query, headers=headers), Bucket="b", Key="k")
    assert caught.value.code == "ValidationException"


@pytest.mark.parametrize(
    "body",
    [
        b"<Delete><Object></Delete>", b"text", b"<!DOCTYPE a [<!ENTITY x 'y'>]><Delete/>",
        b"<Delete><Object><Key>k</Key><Size>x</Size></Object></Delete>",
    ],
)  # fmt: skip
def test_xml_that_cannot_be_read(body: bytes) -> None:
    with pytest.raises(WireError) as caught:
        parse("s3", "DeleteObjects", Request(method="POST", path="/b", query="delete", chunks=iter([body])), Bucket="b")
    assert 400 <= caught.value.status < 500


def test_a_body_over_the_limit() -> None:
    endless = (b"x" * 65536 for _ in range(10**9))
    for service, operation in (("s3", "DeleteObjects"), ("sagemaker", "CreateModel"), ("sts", "GetCallerIdentity")):
        headers = {"content-type": "application/x-amz-json-1.1"}
        with pytest.raises(WireError) as caught:
            parse(
                service,
                operation,
                Request(method="POST", path="/", query="", headers=headers, chunks=endless),
                Bucket="b",
            )
        assert caught.value.code == "RequestEntityTooLargeException"


@pytest.mark.parametrize("kind", ["", "text/plain", "application/x-www-form-urlencoded", "application/xml"])
def test_the_content_type_of_json(kind: str) -> None:
    request = Request(method="POST", path="/", headers={"content-type": kind}, chunks=iter([b"{}"]))
    with pytest.raises(WireError) as caught:
        parse("sagemaker", "ListModels", request)
    assert caught.value.code == "SerializationException"


@pytest.mark.parametrize(
    "moment",
    [
        1795220318.62,
        datetime(2026, 11, 21, 0, 18, 38, 620_000, UTC),
        datetime(2026, 11, 21, 0, 18, 38, 620_000),  # as a database gives it back
        datetime(2026, 11, 21, 5, 18, 38, 620_000, timezone(timedelta(hours=5))),
        "2026-11-21T00:18:38.620+00:00",
    ],
)
@pytest.mark.parametrize("zone", ["UTC", "Asia/Tokyo"])
def test_times_do_not_depend_on_the_zone(moment: Any, zone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        answer = json.loads(whole(serialise("sagemaker", "DescribeModel", {"CreationTime": moment})))
        assert answer == {"CreationTime": 1795220318.62}
        headers = serialise("s3", "HeadObject", {"LastModified": moment}).headers
        assert headers["Last-Modified"] == "Sat, 21 Nov 2026 00:18:38 GMT"
        listing = whole(serialise("s3", "ListObjectsV2", {"Contents": [{"Key": "k", "LastModified": moment}]})).decode()
        assert "<LastModified>2026-11-21T00:18:38.000Z</LastModified>" in listing
        request = Request(method="GET", path="/b/k", headers={"if-modified-since": "Sat, 21 Nov 2026 00:18:38 GMT"})
        parsed = parse("s3", "GetObject", request, Bucket="b", Key="k")
        assert parsed["IfModifiedSince"] == datetime(2026, 11, 21, 0, 18, 38, tzinfo=UTC)
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize(
    ("value", "expected"), [(0.5, 0.5), (float("nan"), "NaN"), (float("inf"), "Infinity"), (float("-inf"), "-Infinity")]
)
def test_floats_that_json_has_not(value: float, expected: Any) -> None:
    metrics = [{"MetricName": "eval_loss", "Value": value, "Timestamp": 1}]
    body = whole(serialise("sagemaker", "DescribeTrainingJob", {"FinalMetricDataList": metrics}))
    assert json.loads(body)["FinalMetricDataList"][0]["Value"] == expected


def test_members_that_the_answer_does_not_have_are_left_out() -> None:
    body = whole(serialise("sagemaker", "CreateModel", {"ModelArn": "arn", "ModelName": "m", "Tags": []}))
    assert json.loads(body) == {"ModelArn": "arn"}


def test_an_object_keeps_its_type_and_streams() -> None:
    pieces = iter([b"a", b"b"])
    response = serialise("s3", "GetObject", {"Body": pieces, "ContentType": "text/csv", "ContentLength": 2})
    assert response.body is pieces
    assert response.headers["Content-Type"] == "text/csv"
    assert response.headers["Content-Length"] == "2"
    assert response.status == 200
    assert "x-amz-checksum-crc32" not in {name.lower() for name in response.headers}


def test_a_part_of_an_object() -> None:
    assert serialise("s3", "GetObject", {"Body": b"a", "ContentRange": "bytes 0-0/9"}).status == 206


def test_answers_without_a_body() -> None:
    assert serialise("s3", "DeleteObject", {}).status == 204
    assert serialise("s3", "DeleteObject", {"DeleteMarker": False}).body == b""
    assert serialise("s3", "DeleteBucket", {}).status == 204
    assert serialise("s3", "PutObject", {"ETag": '"e"'}).body == b""
    assert serialise("sagemaker", "DeleteModel", {}).body in (b"", b"{}")
    assert codec.serialise(model.operation("sagemaker", "DeleteModel"), None, "id").status == 200


@pytest.mark.parametrize(("region", "expected"), [(None, None), ("eu-west-1", "eu-west-1")])
def test_the_location_of_a_bucket(region: str | None, expected: str | None) -> None:
    root = ElementTree.fromstring(whole(serialise("s3", "GetBucketLocation", {"LocationConstraint": region})))
    assert root.tag == "{http://s3.amazonaws.com/doc/2006-03-01/}LocationConstraint"
    assert root.text == expected


def test_a_control_character_in_a_key_is_a_reference() -> None:
    body = whole(serialise("s3", "ListObjectsV2", {"Contents": [{"Key": "a\x01b"}]}))
    assert b"<Key>a&#x1;b</Key>" in body


def test_a_header_does_not_end_early() -> None:
    with pytest.raises(WireError) as caught:
        serialise("s3", "GetObject", {"Body": b"", "ContentType": "a\r\nSet-Cookie: x"})
    assert caught.value.status == 400


def events(response: Response) -> list[tuple[dict[str, Any], bytes]]:
    buffer = EventStreamBuffer()
    buffer.add_data(whole(response))
    return [(event.headers, event.payload) for event in buffer]


def stream(*items: Any) -> Iterator[dict[str, Any]]:
    for item in items:
        if isinstance(item, Exception):
            raise item
        yield {"PayloadPart": {"Bytes": item}}


def test_events_are_encoded_as_they_come() -> None:
    made: list[int] = []

    def source() -> Iterator[dict[str, Any]]:
        for number in range(3):
            made.append(number)
            yield {"PayloadPart": {"Bytes": b"%d" % number}}

    result = {"Body": source(), "ContentType": "text/x", "InvokedProductionVariant": "v"}
    response = serialise("sagemaker-runtime", "InvokeEndpointWithResponseStream", result)
    assert response.headers["Content-Type"] == "application/vnd.amazon.eventstream"
    assert response.headers["X-Amzn-SageMaker-Content-Type"] == "text/x"
    assert not isinstance(response.body, bytes)
    assert made == []
    next(response.body)
    assert made == [0]
    response.body.close()  # type: ignore[attr-defined]
    assert made == [0]


def test_an_error_in_the_midst_of_a_stream_is_its_last_event(caplog: pytest.LogCaptureFixture) -> None:
    def last(error: Exception) -> tuple[dict[str, Any], bytes]:
        result = {"Body": stream(b"one", error)}
        first, then = events(serialise("sagemaker-runtime", "InvokeEndpointWithResponseStream", result))
        assert first[1] == b"one"
        return then

    headers, payload = last(WireError("ModelStreamError", "gone", members={"ErrorCode": "StreamBroken"}))
    assert (headers[":message-type"], headers[":exception-type"]) == ("exception", "ModelStreamError")
    assert json.loads(payload) == {"Message": "gone", "ErrorCode": "StreamBroken"}
    headers, payload = last(RuntimeError("secret"))
    assert headers[":exception-type"] == "InternalStreamFailure"
    assert b"secret" not in payload
    assert "secret" in caplog.text
    headers, _ = last(WireError("ServiceUnavailable", "later", 503))
    assert (headers[":message-type"], headers[":error-code"]) == ("error", "ServiceUnavailable")


ERRORS = [
    ("sagemaker", WireError("ResourceInUse", "taken"), "ResourceInUse", 400),
    ("sagemaker", WireError("InvalidClientTokenId", "x", 403), "UnrecognizedClientException", 403),
    ("sagemaker", DataError(Problem("f", 1, "bad")), "ValidationException", 400),
    ("sagemaker", ModelNotFoundError("none"), "ResourceNotFound", 400),
    ("sagemaker", LuthierError("broken"), "InternalFailure", 500),
    ("logs", WireError("ValidationException", "x"), "InvalidParameterException", 400),
    ("sagemaker-runtime", WireError("ValidationException", "x"), "ValidationError", 400),
    ("sagemaker-runtime", WireError("UnknownOperationException", "x"), "UnknownOperationException", 404),
    ("ec2", WireError("UnknownOperationException", "x"), "UnknownOperationException", 400),
]


@pytest.mark.parametrize(("service", "error", "code", "status"), ERRORS)
def test_errors_in_json(service: str, error: LuthierError, code: str, status: int) -> None:
    response = codec.serialise_error(service, error, "id-1")
    assert response.status == status
    assert response.headers["X-Amzn-Errortype"] == code
    assert response.headers["x-amzn-RequestId"] == "id-1"
    assert json.loads(whole(response)) == {"__type": code, "Message": str(error)}


def test_an_error_s_members() -> None:
    error = WireError("ModelError", "m", 424, {"OriginalStatusCode": 500, "OriginalMessage": "boom"})
    body = json.loads(whole(codec.serialise_error("sagemaker-runtime", error, "id")))
    assert body == {"__type": "ModelError", "Message": "m", "OriginalStatusCode": 500, "OriginalMessage": "boom"}


@pytest.mark.parametrize(
    ("service", "code", "said", "status"),
    [
        ("iam", "NoSuchEntity", "NoSuchEntity", 404),
        ("sts", "ValidationException", "ValidationError", 400),
        ("sts", "UnknownOperationException", "InvalidAction", 400),
        ("s3", "NoSuchKey", "NoSuchKey", 404),
        ("s3", "ValidationException", "InvalidArgument", 400),
        ("s3", "InternalFailure", "InternalError", 500),
        ("s3", "UnknownOperationException", "MethodNotAllowed", 405),
    ],
)
def test_errors_in_xml(service: str, code: str, said: str, status: int) -> None:
    error = WireError(code, "a < b & \x00ü", status, {"Key": "a&b"} if service == "s3" else None)
    response = codec.serialise_error(service, error, "id-1")
    root = ElementTree.fromstring(whole(response))
    found = root if service == "s3" else root.find("Error")
    assert found is not None
    assert (found.findtext("Code"), found.findtext("Message"), response.status) == (said, "a < b & �ü", status)
    assert root.findtext("RequestId") == "id-1"
    assert found.findtext("Key") == ("a&b" if service == "s3" else None)


def test_an_error_that_may_have_no_body() -> None:
    assert codec.serialise_error("s3", WireError("NotModified", "x", 304), "id").body == b""
