"""Which service, operation and region a request is for, however its client addresses it."""

from __future__ import annotations

from typing import Any

import pytest

from luthier.protocol import dispatch
from luthier.protocol.call import GLOBAL_REGION
from luthier.protocol.errors import WireError
from luthier.protocol.message import Request

FORM = {"content-type": "application/x-www-form-urlencoded; charset=utf-8"}


def scope(service: str, region: str = "us-west-2") -> dict[str, str]:
    return {
        "authorization": f"AWS4-HMAC-SHA256 Credential=AK/20300101/{region}/{service}/aws4_request, SignedHeaders=host"
    }


def request(
    method: str = "GET", target: str = "/", headers: dict[str, str] | None = None, body: bytes = b""
) -> Request:
    path, _, query = target.partition("?")
    return Request(
        method=method,
        path=path,
        query=query,
        headers={"host": "127.0.0.1:8777", **(headers or {})},
        chunks=iter([body]),
    )


@pytest.mark.parametrize(
    ("asked", "service", "operation", "region"),
    [
        (request("POST", "/", {"x-amz-target": "SageMaker.CreateModel"}), "sagemaker", "CreateModel", GLOBAL_REGION),
        (request("POST", "/", {"x-amz-target": "Logs_20140328.GetLogEvents", **scope("logs")}), "logs", "GetLogEvents",
         "us-west-2"),
        (request("POST", "/service/GraniteServiceVersion20100801/operation/GetMetricStatistics",
                 {"smithy-protocol": "rpc-v2-cbor", **scope("monitoring")}), "cloudwatch", "GetMetricStatistics",
         "us-west-2"),
        (request("POST", "/", {"x-amz-target": "GraniteServiceVersion20100801.ListMetrics"}), "cloudwatch",
         "ListMetrics", GLOBAL_REGION),
        (request("POST", "/", {"host": "monitoring.eu-west-1.amazonaws.com", **FORM},
                 b"Action=GetMetricStatistics&Version=2010-08-01"), "cloudwatch", "GetMetricStatistics", "eu-west-1"),
        (request("POST", "/", FORM, b"Action=GetMetricStatistics&Version=2010-08-01"), "cloudwatch",
         "GetMetricStatistics", GLOBAL_REGION),
        (request("PUT", "/service/bucket/operation/x", scope("s3")), "s3", "PutObject", "us-west-2"),
        (request("POST", "/endpoints/e/invocations", scope("sagemaker")), "sagemaker-runtime", "InvokeEndpoint",
         "us-west-2"),
        (request("POST", "/endpoints/e/invocations"), "sagemaker-runtime", "InvokeEndpoint", GLOBAL_REGION),
        (request("POST", "/endpoints/e/invocations-response-stream"), "sagemaker-runtime",
         "InvokeEndpointWithResponseStream", GLOBAL_REGION),
        (request("PUT", "/endpoints/e/invocations", scope("s3")), "s3", "PutObject", "us-west-2"),
        (request("POST", "/", {**FORM, **scope("iam", "us-east-1")}, b"Action=GetRole&Version=2010-05-08"), "iam",
         "GetRole",
         "us-east-1"),
        (request("POST", "/", FORM, b"Action=GetCallerIdentity&Version=2011-06-15"), "sts", "GetCallerIdentity",
         GLOBAL_REGION),
        (request("POST", "/", FORM, b"Action=GetRole&Version=2010-05-08"), "iam", "GetRole", GLOBAL_REGION),
        (request("GET", "/?Action=GetCallerIdentity&Version=2011-06-15"), "sts", "GetCallerIdentity", GLOBAL_REGION),
        (request("POST", "/", {"host": "sts.eu-west-1.amazonaws.com", **FORM}, b"Action=GetCallerIdentity"), "sts",
         "GetCallerIdentity", "eu-west-1"),
        (request("GET", "/"), "s3", "ListBuckets", GLOBAL_REGION),
        (request("GET", "/bucket?list-type=2"), "s3", "ListObjectsV2", GLOBAL_REGION),
        (request("GET", "/bucket"), "s3", "ListObjects", GLOBAL_REGION),
        (request("GET", "/bucket/"), "s3", "ListObjects", GLOBAL_REGION),
        (request("GET", "/bucket?location"), "s3", "GetBucketLocation", GLOBAL_REGION),
        (request("HEAD", "/bucket"), "s3", "HeadBucket", GLOBAL_REGION),
        (request("POST", "/bucket?delete"), "s3", "DeleteObjects", GLOBAL_REGION),
        (request("PUT", "/bucket/k", {"x-amz-copy-source": "b/k"}), "s3", "CopyObject", GLOBAL_REGION),
        (request("PUT", "/bucket/k", FORM), "s3", "PutObject", GLOBAL_REGION),
        (request("POST", "/bucket/k?uploads"), "s3", "CreateMultipartUpload", GLOBAL_REGION),
        (request("PUT", "/bucket/k?partNumber=1&uploadId=u"), "s3", "UploadPart", GLOBAL_REGION),
        (request("GET", "/b/k?X-Amz-Credential=AK%2F20300101%2Feu-west-1%2Fs3%2Faws4_request"), "s3", "GetObject",
         "eu-west-1"),
        (request("GET", "/k", {"host": "bucket.s3.eu-west-1.amazonaws.com"}), "s3", "GetObject", "eu-west-1"),
        (request("GET", "/", {"host": "bucket.s3.amazonaws.com"}), "s3", "ListObjects", GLOBAL_REGION),
        (request("GET", "/", {"host": "s3.us-west-2.amazonaws.com:443"}), "s3", "ListBuckets", "us-west-2"),
    ],
)  # fmt: skip
def test_where_a_request_goes(asked: Request, service: str, operation: str, region: str) -> None:
    assert dispatch.service_of(asked) == service or asked.method == "POST"
    found = dispatch.find(asked, dispatch.service_of(asked))
    assert (found.service, found.operation, found.region) == (service, operation, region)


@pytest.mark.parametrize(
    ("host", "bucket"),
    [
        ("bucket.s3.us-west-2.amazonaws.com", "bucket"),
        ("my.dotted.bucket.s3.us-west-2.amazonaws.com:443", "my.dotted.bucket"),
        ("bucket.s3.amazonaws.com", "bucket"),
        ("bucket.s3-us-west-2.amazonaws.com", "bucket"),
        ("bucket.s3.dualstack.us-west-2.amazonaws.com", "bucket"),
        ("sm-pysdk-t-us-west-2.s3.us-west-2.amazonaws.com", "sm-pysdk-t-us-west-2"),
        ("s3.us-west-2.amazonaws.com", ""),
        ("s3.amazonaws.com", ""),
        ("s3.dualstack.us-west-2.amazonaws.com", ""),
        ("bucket.localhost:8777", "bucket"),
        ("localhost:8777", ""),
        ("127.0.0.1", ""),
        ("sagemaker.us-west-2.amazonaws.com", ""),
        ("", ""),
        ("s3.bucket.example.com", ""),
    ],
)
def test_buckets_in_hosts(host: str, bucket: str) -> None:
    assert dispatch.virtual_bucket(request(headers={"host": host})) == bucket


def test_a_virtual_bucket_is_a_label() -> None:
    found = dispatch.find(request("GET", "/a%20b//c/", {"host": "bucket.s3.us-west-2.amazonaws.com"}), "s3")
    assert found.labels == {"Bucket": "bucket", "Key": "a b//c/"}


@pytest.mark.parametrize(
    ("path", "key"),
    [("/b/k", "k"), ("/b/a/b", "a/b"), ("/b/folder/", "folder/"), ("/b//k", "/k"), ("/b/a%2Fb", "a/b"), ("/b/%C3%BC",
     "ü"),
     ("/b/a+b", "a+b"), ("/b/..%2f..", "../.."), ("/b/a//b/", "a//b/")],
)  # fmt: skip
def test_keys(path: str, key: str) -> None:
    assert dispatch.find(request("GET", path), "s3").labels == {"Bucket": "b", "Key": key}


@pytest.mark.parametrize(
    ("host", "region"),
    [
        ("sagemaker.us-gov-west-1.amazonaws.com", "us-gov-west-1"),
        ("bucket.s3.eu-west-3.amazonaws.com:443", "eu-west-3"),
        ("bucket.s3-eu-west-3.amazonaws.com", "eu-west-3"),
        ("us-west-2.s3.amazonaws.com", GLOBAL_REGION),
        ("eu-west-3.example.com", GLOBAL_REGION),
        ("sts.amazonaws.com", GLOBAL_REGION),
        ("127.0.0.1", GLOBAL_REGION),
    ],
)
def test_regions_by_host(host: str, region: str) -> None:
    assert dispatch.region_of(request(headers={"host": host})) == region


@pytest.mark.parametrize(
    ("host", "service"),
    [
        ("api.sagemaker.us-west-2.amazonaws.com", "sagemaker"),
        ("runtime.sagemaker.us-west-2.amazonaws.com", "sagemaker-runtime"),
        ("logs.us-west-2.amazonaws.com", "logs"),
        ("sts.amazonaws.com", "sts"),
        ("iam.amazonaws.com", "iam"),
        ("ec2.us-west-2.amazonaws.com", "ec2"),
    ],
)
def test_services_by_host(host: str, service: str) -> None:
    assert dispatch.service_of(request(headers={"host": host})) == service


@pytest.mark.parametrize(
    "asked",
    [
        request("POST", "/", {"x-amz-target": "SageMaker.MakeCoffee"}),
        request("POST", "/", {"x-amz-target": "SageMaker."}),
        request("POST", "/", {"x-amz-target": "DynamoDB_20120810.ListTables"}),
        request("POST", "/", scope("sagemaker")),
        request("POST", "/", scope("ec2")),
        request("POST", "/", {**FORM, **scope("sts")}, b"Action=MakeCoffee"),
        request("POST", "/", {**FORM, **scope("sts")}),
        request("POST", "/endpoints/e/coffee", scope("sagemaker")),
        request("BREW", "/bucket/key"),
        request("TRACE", "/"),
        request("POST", "/"),
        request("DELETE", "/"),
    ],
)
def test_what_no_service_has(asked: Request) -> None:
    with pytest.raises(WireError) as caught:
        dispatch.find(asked, dispatch.service_of(asked))
    assert caught.value.code == "UnknownOperationException"


@pytest.mark.parametrize(
    ("path", "query"),
    [("/%zz", ""), ("/%", ""), ("/%f", ""), ("/%ff", ""), ("/ü", ""), ("/a b", ""), ("", ""), ("*", ""), ("/", "a=%ff"),
     ("/", "%"), ("/%00", ""), ("/", "a=%00")],
)  # fmt: skip
def test_what_is_no_address(path: str, query: str) -> None:
    with pytest.raises(WireError) as caught:
        dispatch.check_target(Request(method="GET", path=path, query=query))
    assert (caught.value.code, caught.value.status) == ("InvalidURI", 400)


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"Action=GetRole&RoleName=%ff", FORM),
        (b"\xff", FORM),
        (b"&".join(b"a%d=1" % number for number in range(3_000)), FORM),
        (b"{}", {"content-type": "application/json"}),
        (b"Action=GetRole&RoleName=%00", FORM),
    ],
)
def test_what_is_no_form(body: bytes, headers: dict[str, str]) -> None:
    with pytest.raises(WireError) as caught:
        dispatch.find(request("POST", "/", {**headers, **scope("iam")}, body), "iam")
    assert caught.value.status == 400


def test_headers_that_a_signed_url_holds() -> None:
    query = "x-amz-meta-colour=red&x-amz-acl=private&X-Amz-Date=x&x-amz-bad%20name=x&x-amz-meta-n=a%0d%0ab"
    query += "&X-Amz-Signature=0"
    asked: Any = request("PUT", f"/b/k?{query}", {"x-amz-acl": "mine"})
    headers = dispatch.headers_of(asked)
    assert headers["x-amz-meta-colour"] == "red"
    assert headers["x-amz-acl"] == "mine"
    assert headers["x-amz-meta-n"] == "a b"
    assert not {"X-Amz-Date", "x-amz-date"} & headers.keys()
    assert "x-amz-meta-colour" not in dispatch.headers_of(request("PUT", "/b/k?x-amz-meta-colour=red"))


@pytest.mark.parametrize(
    ("scope_name", "words"),
    [("ecr", "Amazon Elastic Container Registry is"), ("dynamodb", "Amazon DynamoDB is"),
     ("nosuch", "the service 'nosuch' is")],
)  # fmt: skip
def test_a_service_that_is_not_offered_has_its_users_name(scope_name: str, words: str) -> None:
    with pytest.raises(WireError, match=f"{words} not part of Luthier"):
        dispatch.find(request("POST", "/", scope(scope_name)), scope_name)
