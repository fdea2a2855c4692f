"""Whatever bytes come: an answer below 500, soon. Nothing here is a request that a client of AWS's would send."""

from __future__ import annotations

import copy
import json
import time
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from live_wire import EVERYTHING
from shape_samples import Unknown, sample

from luthier.protocol import model
from luthier.protocol.call import Call, Principal
from luthier.protocol.gateway import Gateway
from luthier.protocol.message import Request, Response
from luthier.protocol.signature import verify

FEW, MANY = 300, 20_000
SLOW = settings(max_examples=MANY, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
QUICK = settings(max_examples=FEW, deadline=None, suppress_health_check=list(HealthCheck))
SCOPES = [f"AWS4-HMAC-SHA256 Credential=AK/20300101/us-east-1/{service}/aws4_request, SignedHeaders=host, Signature=0"
          for service in ("s3", "sts", "iam", "sagemaker", "logs", "ec2")]  # fmt: skip
TARGETS = [f"SageMaker.{name}" for name in ("CreateTrainingJob", "ListModels", "Search", "Coffee", "")] + [
    "Logs_20140328.GetLogEvents"
]


def operate(call: Call) -> Any:
    """Read what there is to read, and answer nothing."""
    body = call.parameters.get("Body")
    if body is not None and not isinstance(body, bytes):
        for _ in body:
            pass
    json.dumps(call.parameters, default=str)
    return {}


def authenticate(request: Request, service: str) -> Principal:
    """Verify what is signed; what is not signed goes through, so that more is reached."""
    if "please" in request.query and (request.headers.get("authorization") or "Signature=" in request.query):
        verify(request, lambda key: "secret" if key == "AK" else None, datetime.now(UTC))
    return Principal()


GATEWAY = Gateway(operate, EVERYTHING, authenticate)


def check(request: Request) -> Response:
    started = time.monotonic()
    response = GATEWAY.respond(request)
    body = response.body if isinstance(response.body, bytes) else b"".join(response.body)
    assert response.status < 500 or b"transfer coding" in body, (request, body)  # 501, as S3 refuses it
    assert time.monotonic() - started < 10, request
    assert all("\n" not in value and "\r" not in value for value in response.headers.values())
    return response


text = st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=40)
methods = st.sampled_from(["GET", "PUT", "POST", "DELETE", "HEAD", "OPTIONS", "PATCH", "BREW", ""])
wild_segments = ["%2f", "%00", "%ff", "%", "ü", "*", "\x7f", "a b"]
segments = st.sampled_from(
    ["bucket", "key", "", ".", "..", "endpoints", "e", "invocations", "a%20b", "%C3%BC", "a" * 1100]
)
paths = st.lists(segments, max_size=4).map(lambda parts: "/" + "/".join(parts))
wild_paths = st.lists(st.one_of(segments, st.sampled_from(wild_segments)), max_size=5).map("/".join) | text
fields = st.sampled_from(
    ["list-type=2", "uploads", "uploadId=u", "partNumber=1", "partNumber=x", "max-keys=9999999999999", "delete", "acl",
     "tagging", "X-Amz-Signature=0", "Signature=0&AWSAccessKeyId=a&Expires=9", "Action=GetRole", "location", "versions",
     "X-Amz-Credential=a%2Fb", "x-amz-meta-a=%0d%0a", "please", "encoding-type=url", "&&&", "=", "prefix=%F0%9F%98%80",
     "versionId=null", "attributes", "cors", "response-content-type=%0d%0aa", "x-amz-acl=%20"]
)  # fmt: skip
queries = st.lists(fields, max_size=3).map("&".join)
wild_queries = st.sampled_from(["%", "a=%ff", "a=%00", "&".join(["a"] * 3000), "ü"]) | text
values = st.sampled_from(
    ["STREAMING-UNSIGNED-PAYLOAD-TRAILER", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD", "UNSIGNED-PAYLOAD", "aws-chunked", "5",
     "application/x-www-form-urlencoded", "application/x-amz-json-1.1", "bucket.s3.us-west-2.amazonaws.com",
     "a.localhost", "sts.amazonaws.com", "-1", "0" * 64, "bytes=0-", "[::1]:80", "Sat, 99 Foo 2030 00:00:00 XYZ",
     "1e999", "AAAA, BBBB", "20300101T000000Z", "99999999999999999999", "Sat, 01 Jan 2050 00:00:00 GMT",
     "0001-01-01T00:00:00+23:59", *SCOPES, *TARGETS]
)  # fmt: skip
names = st.sampled_from(
    ["host", "x-amz-target", "authorization", "content-type", "content-length", "content-encoding", "range",
     "x-amz-date", "x-amz-content-sha256", "x-amz-decoded-content-length", "x-amz-copy-source", "if-modified-since",
     "x-amz-meta-a", "x-amz-checksum-crc32", "x-amz-trailer", "content-md5", "expires", "transfer-encoding",
     "x-amz-acl", "expect",
     "x-amz-object-attributes", "x-amz-tagging", "x-amz-storage-class", "x-amz-object-lock-retain-until-date"]
)  # fmt: skip
headers = st.dictionaries(names, values | text, max_size=4)
json_leaf = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20),
    st.sampled_from(["\ud800", "\0", 10**400, "a" * 3000]),
)  # fmt: skip
json_value = st.recursive(
    json_leaf, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
)
forms = st.lists(
    st.sampled_from(
        ["Action=GetCallerIdentity", "Action=GetRole", "Action=SimulatePrincipalPolicy", "Version=2011-06-15",
         "RoleName=a",
         "Version=2010-05-08", "ActionNames.member.1=a", "ActionNames.member.2=", "ActionNames=", "MaxItems=x",
         "MaxItems=0",
         "ContextEntries.member.1.ContextKeyName=a", "ContextEntries.member.1.ContextKeyValues.member.1=b",
         "RoleName=%00",
         "PolicySourceArn=arn%3Aaws%3Aiam%3A%3A123456789012%3Arole%2Fa", "RoleName.member.1.entry.1.key=a",
         "RoleName=%ff"]
    ), max_size=6,
).map(lambda parts: "&".join(parts).encode())  # fmt: skip
xml = st.lists(
    st.sampled_from(
        ["<Delete>", "</Delete>", "<Object>", "</Object>", "<Key>k</Key>", "<Quiet>true</Quiet>", "<Size>x</Size>",
         "&amp;",
         "<CompleteMultipartUpload>", "</CompleteMultipartUpload>", "<Part><PartNumber>1</PartNumber></Part>", "&x;",
         "text",
         "<!DOCTYPE a [<!ENTITY x 'y'>]>", "<?xml version='1.0'?>", "<a xmlns='urn:x'>", "</a>", "<Object/>",
         "<Key/>", "\x01"]
    ), max_size=8,
).map(lambda parts: "".join(parts).encode())  # fmt: skip
frames = st.sampled_from(
    [b"5\r\nhello\r\n0\r\n\r\n", b"5;chunk-signature=" + b"0" * 64 + b"\r\nhello\r\n", b"0\r\na:b\r\n\r\n"]
)
bodies = st.one_of(
    st.binary(max_size=200), forms, xml, frames,
    json_value.map(lambda value: json.dumps(value).encode("utf-8", "surrogatepass")),
    st.sampled_from([b"[" * 5000, b"<a>" * 500, b"\xef\xbb\xbf{}", b'{"Tags": [[[]]]}', b"&" * 100, b"\0", b""]),
)  # fmt: skip
FORM = {"content-type": "application/x-www-form-urlencoded"}


@st.composite
def requests(draw: st.DrawFn) -> Request:
    """What a service would take, with any part of it replaced by what it would not."""
    kind = draw(st.sampled_from(["s3", "s3", "query", "runtime", "json", "wild"]))
    path, query = draw(paths) if kind == "s3" else "/", draw(queries) if kind in ("s3", "runtime") else ""
    method, body = (
        draw(methods) if kind == "s3" else "POST",
        draw(forms if kind == "query" else xml if kind == "s3" else bodies),
    )
    sent = {
        "query": FORM,
        "json": {"x-amz-target": draw(st.sampled_from(TARGETS)), "content-type": "application/json"},
    }.get(kind, {})
    path = "/endpoints/e/invocations" if kind == "runtime" else path
    for part in draw(st.sets(st.integers(0, 5), max_size=6 if kind == "wild" else 2)):
        method = draw(methods) if part == 0 else method
        path = draw(wild_paths) if part == 1 else path
        query = draw(wild_queries) if part == 2 else query
        sent = {**sent, **draw(headers)} if part in (3, 4) else sent
        body = draw(bodies) if part == 5 else body
    size = draw(st.integers(1, 50))
    return Request(
        method=method,
        path=path,
        query=query,
        headers=sent,
        chunks=iter([body[at : at + size] for at in range(0, len(body), size)]),
    )


@QUICK
@given(requests())
def test_any_bytes(request: Request) -> None:
    check(request)


@pytest.mark.slow
@SLOW
@given(requests())
def test_any_bytes_at_length(request: Request) -> None:
    check(request)


def _samples() -> dict[str, Any]:
    """A request body that the model allows, for each operation of SageMaker's for which one can be made."""
    made = {}
    for name in model.load("sagemaker").operation_names:
        shape = model.operation("sagemaker", name).input_shape
        try:
            made[name] = sample(shape) if shape is not None else {}
        except Unknown:
            made[name] = {}
    return made


SAMPLES = _samples()


@st.composite
def bent(draw: st.DrawFn) -> Request:
    """A body that is right but for a few values somewhere in it."""
    name = draw(st.sampled_from(sorted(SAMPLES)))
    root = copy.deepcopy(SAMPLES[name])
    for _ in range(draw(st.integers(0, 4))):
        holder, key = _somewhere(draw, root)
        if holder is not None:
            holder[key] = draw(json_value)
    body = json.dumps(root, default=lambda value: value.timestamp() if hasattr(value, "timestamp") else "AP8=")
    given_headers = {"x-amz-target": f"SageMaker.{name}", "content-type": "application/x-amz-json-1.1"}
    return Request(
        method="POST", path="/", query="", headers=given_headers, chunks=iter([body.encode("utf-8", "surrogatepass")])
    )


def _somewhere(draw: st.DrawFn, value: Any) -> tuple[Any, Any]:
    holder, key = None, None
    while isinstance(value, dict | list) and value and (holder is None or draw(st.booleans())):
        holder = value
        key = draw(st.sampled_from(sorted(value) if isinstance(value, dict) else list(range(len(value)))))
        value = value[key]
    return holder, key


@QUICK
@given(bent())
def test_bent_requests(request: Request) -> None:
    check(request)


@pytest.mark.slow
@SLOW
@given(bent())
def test_bent_requests_at_length(request: Request) -> None:
    check(request)


@QUICK
@given(methods, st.text(max_size=10), st.text(max_size=20), queries, headers)
def test_any_bucket_and_key(method: str, bucket: str, key: str, query: str, given_headers: dict[str, str]) -> None:
    path = f"/{quote(bucket, safe='', errors='replace')}/{quote(key, errors='replace')}"
    check(Request(method=method, path=path, query=query, headers=given_headers))


def test_every_operation_that_is_known_can_be_asked_for() -> None:
    answered = 0
    for name, parameters in SAMPLES.items():
        body = json.dumps(
            parameters, default=lambda value: value.timestamp() if hasattr(value, "timestamp") else "AP8="
        )
        given_headers = {"x-amz-target": f"SageMaker.{name}", "content-type": "application/x-amz-json-1.1"}
        answered += (
            check(
                Request(method="POST", path="/", query="", headers=given_headers, chunks=iter([body.encode()]))
            ).status
            == 200
        )
    assert answered > 0.8 * len(SAMPLES)
