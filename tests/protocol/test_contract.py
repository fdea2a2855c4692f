"""Real botocore clients, whose every request is signed and verified here, against the wire on a real port."""

from __future__ import annotations

import hashlib
import io
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit

import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
from botocore.exceptions import ClientError, EventStreamError
from botocore.httpchecksum import AwsChunkedWrapper, Crc32Checksum
from live_wire import KEY, SECRET, LiveWire

from luthier.protocol.call import Call
from luthier.protocol.errors import WireError

MIB = 1 << 20


def code(call: Any, **parameters: Any) -> str:
    with pytest.raises(ClientError) as caught:
        call(**parameters)
    error: dict[str, str] = caught.value.response["Error"]
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] < 500
    assert caught.value.response["ResponseMetadata"].get("RequestId")
    return error["Code"]


CALLS: list[tuple[str, str, dict[str, Any]]] = [
    ("sagemaker", "describe_training_job", {"TrainingJobName": "j"}),
    ("logs", "get_log_events", {"logGroupName": "g", "logStreamName": "s"}),
    ("sts", "get_caller_identity", {}),
    ("iam", "get_role", {"RoleName": "r"}),
    ("s3", "get_object", {"Bucket": "bucket", "Key": "k"}),
    ("sagemaker-runtime", "invoke_endpoint", {"EndpointName": "e", "Body": b"x"}),
]
OPERATIONS = ("DescribeTrainingJob", "GetLogEvents", "GetCallerIdentity", "GetRole", "GetObject", "InvokeEndpoint")


@pytest.mark.parametrize(("service", "name", "parameters"), CALLS)
def test_an_error_is_seen_by_its_code_and_message(wire: LiveWire, service: str, name: str, parameters: Any) -> None:
    for operation in OPERATIONS:
        wire.echo.answers[operation] = WireError("SomethingWrong", "Could not find «it» <&>", 404)
    with pytest.raises(ClientError) as caught:
        getattr(wire.client(service), name)(**parameters)
    response = caught.value.response
    assert (response["Error"]["Code"], response["Error"]["Message"]) == ("SomethingWrong", "Could not find «it» <&>")
    assert response["ResponseMetadata"]["HTTPStatusCode"] == 404
    assert response["ResponseMetadata"]["RequestId"] == wire.echo.calls[-1].request_id


@pytest.mark.parametrize(
    ("service", "name", "parameters", "wrong_secret", "wrong_key"),
    [
        (*CALLS[0], "InvalidSignatureException", "UnrecognizedClientException"),
        (*CALLS[1], "InvalidSignatureException", "UnrecognizedClientException"),
        (*CALLS[2], "SignatureDoesNotMatch", "InvalidClientTokenId"),
        (*CALLS[3], "SignatureDoesNotMatch", "InvalidClientTokenId"),
        (*CALLS[4], "SignatureDoesNotMatch", "InvalidAccessKeyId"),
        (*CALLS[5], "InvalidSignatureException", "UnrecognizedClientException"),
    ],
)
def test_the_wrong_key(
    wire: LiveWire, service: str, name: str, parameters: Any, wrong_secret: str, wrong_key: str
) -> None:
    assert code(getattr(wire.client(service, aws_secret_access_key="wrong"), name), **parameters) == wrong_secret
    assert code(getattr(wire.client(service, aws_access_key_id="AKWRONG"), name), **parameters) == wrong_key
    assert wire.echo.calls == []


def test_modelled_errors_are_exceptions_of_the_client(wire: LiveWire) -> None:
    sagemaker, s3, runtime = wire.client("sagemaker"), wire.client("s3"), wire.client("sagemaker-runtime")
    wire.echo.answers["CreateModel"] = WireError("ResourceInUse", "Cannot create already existing model")
    wire.echo.answers["GetObject"] = WireError("NoSuchKey", "The specified key does not exist.", 404, {"Key": "k"})
    wire.echo.answers["InvokeEndpoint"] = WireError("ModelError", "m", 424, {"OriginalStatusCode": 500})
    with pytest.raises(sagemaker.exceptions.ResourceInUse, match="already existing"):
        sagemaker.create_model(ModelName="m")
    with pytest.raises(s3.exceptions.NoSuchKey) as key:
        s3.get_object(Bucket="bucket", Key="k")
    assert key.value.response["Error"]["Key"] == "k"
    with pytest.raises(runtime.exceptions.ModelError) as failed:
        runtime.invoke_endpoint(EndpointName="e", Body=b"")
    assert failed.value.response["OriginalStatusCode"] == 500


def test_what_the_client_does_not_check_the_server_does(wire: LiveWire) -> None:
    with pytest.raises(ClientError) as caught:
        wire.client("sagemaker").describe_auto_ml_job_v2(AutoMLJobName="x" * 33)
    assert caught.value.response["Error"]["Code"] == "ValidationException"
    assert caught.value.response["Error"]["Message"].startswith("2 validation errors detected: Value 'xxx")
    assert code(wire.client("logs").describe_log_streams, logGroupName="g", limit=99) == "InvalidParameterException"
    assert code(wire.client("iam").get_role, RoleName="a b") == "ValidationError"
    assert code(wire.client("sagemaker-runtime").invoke_endpoint, EndpointName="a_b", Body=b"") == "ValidationError"
    bucket = {"Bucket": "bucket", "Key": "k", "StorageClass": "COLD", "Body": b""}
    assert code(wire.client("s3").put_object, **bucket) == "InvalidArgument"


def test_a_stream_of_events_arrives_as_it_is_made(wire: LiveWire) -> None:
    taken: list[bytes] = []
    more = threading.Semaphore(1)

    def events() -> Iterator[dict[str, Any]]:
        for number in range(5):
            assert more.acquire(timeout=10), "the client has not had what was made before"
            yield {"PayloadPart": {"Bytes": b"token %d" % number}}
        raise WireError("ModelStreamError", "the engine ended", members={"ErrorCode": "StreamBroken"})

    def invoke(call: Call) -> dict[str, Any]:
        given = {name: call.parameters[name] for name in ("ContentType", "Accept", "Body")}
        assert given == {"ContentType": "application/json", "Accept": "text/plain", "Body": b'{"inputs": "a"}'}
        return {"Body": events(), "ContentType": "text/plain", "InvokedProductionVariant": "AllTraffic"}

    wire.echo.answers["InvokeEndpointWithResponseStream"] = invoke
    response = wire.client("sagemaker-runtime").invoke_endpoint_with_response_stream(
        EndpointName="e", Body=b'{"inputs": "a"}', ContentType="application/json", Accept="text/plain"
    )
    assert (response["ContentType"], response["InvokedProductionVariant"]) == ("text/plain", "AllTraffic")

    def take() -> None:
        for event in response["Body"]:
            taken.append(event["PayloadPart"]["Bytes"])
            more.release()

    with closing(response["Body"]), pytest.raises(EventStreamError, match="the engine ended"):
        take()
    assert taken == [b"token %d" % number for number in range(5)]


def test_an_invocation_keeps_its_types(wire: LiveWire) -> None:
    answered = {"Body": b"\x00\xff", "ContentType": "application/x-npy", "InvokedProductionVariant": "AllTraffic"}
    wire.echo.answers["InvokeEndpoint"] = answered
    given = {"EndpointName": "e", "Body": b"\xff\x00", "ContentType": "a/b", "Accept": "c/d", "CustomAttributes": "x=1"}
    response = wire.client("sagemaker-runtime").invoke_endpoint(**given)
    assert wire.echo.calls[-1].parameters == given
    assert (response["Body"].read(), response["ContentType"]) == (b"\x00\xff", "application/x-npy")


class Pieces:
    """A PutObject that keeps no more of the body than its hash."""

    def __init__(self) -> None:
        self.digest, self.size, self.longest = hashlib.sha256(), 0, 0

    def __call__(self, call: Call) -> dict[str, Any]:
        self.length = call.parameters.get("ContentLength")
        for piece in call.parameters["Body"]:
            self.digest.update(piece)
            self.size += len(piece)
            self.longest = max(self.longest, len(piece))
        return {"ETag": '"e"'}


def test_a_large_body_streams_both_ways(wire: LiveWire) -> None:
    body = b"0123456789abcdef" * (2 * MIB)
    wire.echo.answers["PutObject"] = pieces = Pieces()
    wire.echo.answers["GetObject"] = lambda call: {
        "Body": (body[at : at + MIB] for at in range(0, len(body), MIB)), "ContentLength": len(body)
    }  # fmt: skip
    s3 = wire.client("s3")
    s3.put_object(Bucket="bucket", Key="k", Body=io.BytesIO(body))
    assert (pieces.size, pieces.length, pieces.digest.digest()) == (len(body), len(body), hashlib.sha256(body).digest())
    assert pieces.longest < MIB
    received = hashlib.sha256()
    for piece in s3.get_object(Bucket="bucket", Key="k")["Body"].iter_chunks(MIB):
        received.update(piece)
    assert received.digest() == hashlib.sha256(body).digest()


def test_a_multipart_upload_by_the_client_s_own_transfer(wire: LiveWire) -> None:
    wire.echo.answers["CreateMultipartUpload"] = {"UploadId": "u"}
    wire.echo.answers["UploadPart"] = lambda call: {"ETag": f'"{len(b"".join(call.parameters["Body"]))}"'}
    wire.client("s3").upload_fileobj(io.BytesIO(bytes(20 * MIB)), "bucket", "k")
    done = wire.echo.calls[-1]
    assert done.operation == "CompleteMultipartUpload"
    parts = [(part["PartNumber"], part["ETag"]) for part in done.parameters["MultipartUpload"]["Parts"]]
    assert parts == [(1, '"8388608"'), (2, '"8388608"'), (3, '"4194304"')]


@pytest.mark.parametrize("version", ["s3", "s3v4"])
def test_signed_urls(wire: LiveWire, version: str) -> None:
    wire.echo.answers["GetObject"] = {"Body": b"content", "ContentType": "text/csv"}
    wire.echo.answers["PutObject"] = pieces = Pieces()
    s3 = wire.client("s3", config={"signature_version": version})
    key = {"Bucket": "bucket", "Key": "a b/ü+c"}
    url = s3.generate_presigned_url("get_object", Params={**key, "ResponseContentType": "text/csv"}, ExpiresIn=60)
    assert ("AWSAccessKeyId=" in url) == (version == "s3")
    with urllib.request.urlopen(url) as response:
        assert response.read() == b"content"
    assert wire.echo.calls[-1].parameters == {**key, "ResponseContentType": "text/csv"}
    url = s3.generate_presigned_url("put_object", Params={**key, "ContentType": "text/plain"}, ExpiresIn=60)
    request = urllib.request.Request(url, b"x" * 100_000, {"Content-Type": "text/plain"}, method="PUT")
    with urllib.request.urlopen(request) as response:
        assert response.status == 200
    assert (wire.echo.calls[-1].operation, pieces.size) == ("PutObject", 100_000)
    for changed in (url.replace("/a%20b", "/other"), url[:-4]):
        request = urllib.request.Request(changed, b"x", {"Content-Type": "text/plain"}, method="PUT")
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request)
        with caught.value as refused:
            assert (refused.code, b"<Code>" in refused.read()) == (403, True)


def test_a_body_in_aws_s_chunks(wire: LiveWire) -> None:
    """As botocore sends it over HTTPS: the checksum after the body, HTTP's chunks around AWS's."""
    body = b"x" * (3 * MIB + 17)
    wire.echo.answers["PutObject"] = pieces = Pieces()
    headers = {
        "X-Amz-Content-SHA256": "STREAMING-UNSIGNED-PAYLOAD-TRAILER", "Content-Encoding": "aws-chunked",
        "X-Amz-Trailer": "x-amz-checksum-crc32", "X-Amz-Decoded-Content-Length": str(len(body)),
        "X-Amz-Sdk-Checksum-Algorithm": "CRC32",
    }  # fmt: skip
    request = AWSRequest(method="PUT", url=f"{wire.url}/bucket/k", headers=headers)
    request.context["checksum"] = {"request_algorithm": {"in": "trailer", "algorithm": "crc32", "name": "x"}}
    S3SigV4Auth(Credentials(KEY, SECRET), "s3", "eu-west-1").add_auth(request)
    framed = AwsChunkedWrapper(io.BytesIO(body), Crc32Checksum, "x-amz-checksum-crc32")
    sent = urllib.request.Request(request.url, iter(framed), dict(request.headers.items()), method="PUT")
    with urllib.request.urlopen(sent) as response:
        assert response.status == 200
    assert (pieces.size, pieces.length) == (len(body), len(body))
    call = wire.echo.calls[-1]
    assert call.request.trailers == {"x-amz-checksum-crc32": call.request.trailers["x-amz-checksum-crc32"]}
    assert len(call.request.trailers["x-amz-checksum-crc32"]) == 8
    assert call.parameters.get("ContentEncoding") is None


def test_a_bucket_in_the_host(wire: LiveWire) -> None:
    wire.echo.answers["GetObject"] = {"Body": b"content"}
    url = f"http://bucket.s3.eu-west-1.amazonaws.com:{wire.port}/a/b"
    request = AWSRequest(method="GET", url=url)
    S3SigV4Auth(Credentials(KEY, SECRET), "s3", "eu-west-1").add_auth(request)
    headers = {**dict(request.headers.items()), "Host": urlsplit(url).netloc}
    with urllib.request.urlopen(urllib.request.Request(f"{wire.url}/a/b", headers=headers)) as response:
        assert response.read() == b"content"
    assert wire.echo.calls[-1].parameters == {"Bucket": "bucket", "Key": "a/b"}


def test_no_checksum_is_made_up(wire: LiveWire) -> None:
    """The client checks whatever checksum is in the answer, against the bytes that it was sent."""
    wire.echo.answers["GetObject"] = {"Body": b"part", "ContentRange": "bytes 0-3/9", "ContentLength": 4}
    response = wire.client("s3").get_object(Bucket="bucket", Key="k", Range="bytes=0-3")
    assert response["Body"].read() == b"part"
    assert response["ResponseMetadata"]["HTTPStatusCode"] == 206
    assert not [name for name in response["ResponseMetadata"]["HTTPHeaders"] if "checksum" in name]


def test_the_client_does_not_try_again_what_cannot_work(wire: LiveWire) -> None:
    client = wire.client("sagemaker", config={"retries": {"total_max_attempts": 3}})
    assert isinstance(client.meta.config, Config)
    assert code(client.describe_auto_ml_job_v2, AutoMLJobName="x" * 33) == "ValidationException"
