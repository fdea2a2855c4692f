"""Whatever is asked of the whole service: an answer below 500, soon. Requests as botocore makes them, and bent ones."""

from __future__ import annotations

import copy
import functools
import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from api.shape_values import WORDS, anything
from api.wire_client import automl_job, training_job
from botocore.serialize import create_serializer
from hypothesis import HealthCheck, Phase, Verbosity, given, settings
from hypothesis import strategies as st
from service.whole_wire import VARIANT, WholeWire, whole_wire

from luthier.protocol import model
from luthier.protocol.message import Request
from luthier.service.operations import KNOWN

FEW, MANY = 400, 20_000
SEEDED_EVERY = 100
_BARE: dict[str, Any] = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}
QUICK = settings(max_examples=FEW, derandomize=True, **_BARE)
SLOW = settings(max_examples=MANY, phases=[Phase.generate], verbosity=Verbosity.quiet, **_BARE)
CASES = sorted((service, name) for service, operations in KNOWN.items() for name in operations)
# What is taken; a request for such a resource has further members, or others.
TAKEN: dict[str, dict[str, Any]] = {
    "CreateTrainingJob": training_job("new"),
    "CreateAutoMLJobV2": automl_job("new"),
    "CreateModel": {"ModelName": "new", "PrimaryContainer": {"ModelDataUrl": "s3://bucket/x"}},
    "CreateEndpointConfig": {"EndpointConfigName": "new", "ProductionVariants": [VARIANT]},
    "CreateEndpoint": {"EndpointName": "new", "EndpointConfigName": "a"},
    "PutObject": {"Bucket": "bucket", "Key": "new"},
    "InvokeEndpoint": {"EndpointName": "a"},
    "InvokeEndpointWithResponseStream": {"EndpointName": "a"},
    "GetLogEvents": {"logGroupName": "/aws/sagemaker/TrainingJobs"},
    "DescribeLogStreams": {"logGroupName": "/aws/sagemaker/TrainingJobs"},
}
LIKELY = {"Bucket": "bucket", "Key": "rows/train.jsonl", "TrainingJobName": "job", "AutoMLJobName": "auto",
          "ModelName": "a", "EndpointName": "a", "EndpointConfigName": "a"}  # fmt: skip
wild_text = st.sampled_from([*WORDS, "", "\r\n", "%", "%ff", "%00", "..", "../../etc/passwd", "a" * 3000, "\x7f", "😀"])
wild_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | wild_text | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(wild_text, inner, max_size=3), max_leaves=5,
)  # fmt: skip
wild_bodies = st.binary(max_size=60) | st.sampled_from(
    [
        b"[" * 5000,
        b"<a>" * 500,
        b"{}",
        b"",
        b"\xff\xfe",
        b"<!DOCTYPE a [<!ENTITY x 'y'>]><a>&x;</a>",
        b"5\r\nhello\r\n0\r\n\r\n",
    ]
)
methods = st.sampled_from(["GET", "PUT", "POST", "DELETE", "HEAD", "OPTIONS", "PATCH", "BREW"])
names = st.sampled_from(
    ["host", "x-amz-target", "authorization", "content-type", "content-length", "content-md5", "content-encoding",
     "range", "x-amz-date", "x-amz-content-sha256", "x-amz-decoded-content-length", "x-amz-copy-source",
     "x-amz-copy-source-range", "if-match", "if-none-match", "if-modified-since", "x-amz-meta-a", "x-amz-tagging",
     "x-amz-checksum-crc32", "x-amz-sdk-checksum-algorithm", "x-amz-trailer", "x-amz-metadata-directive", "expires"]
)  # fmt: skip
values = wild_text | st.sampled_from(
    ["STREAMING-UNSIGNED-PAYLOAD-TRAILER", "aws-chunked", "-1", "99999999999999999999", "bytes=-0", "bytes=5-1",
     "Sat, 99 Foo 2030 00:00:00 XYZ", "sts.amazonaws.com", "bucket.s3.us-west-2.amazonaws.com", "bucket.localhost",
     "/bucket/a", "bucket%2Fa", "/bucket/../bucket/a", "COPY", "REPLACE", "SageMaker.CreateModel", "SageMaker.",
     "AWS4-HMAC-SHA256 Credential=AK/20300101/us-east-1/iam/aws4_request, SignedHeaders=host, Signature=0"]
)  # fmt: skip
queries = st.sampled_from(
    ["uploads", "uploadId=u", "partNumber=0", "max-keys=-1", "max-keys=x", "delete", "acl", "tagging", "list-type=2",
     "continuation-token=%F0", "continuation-token=AAAA", "start-after=%ff", "encoding-type=xml", "versionId=x",
     "Action=GetRole&Version=2010-05-08", "%", "&&=", "versions&key-marker=a&version-id-marker=b", "attributes",
     "prefix=%00", "max-uploads=1&uploads", "part-number-marker=9&uploadId=a", "response-content-type=%0d%0a"]
)  # fmt: skip


@functools.cache
def _parameters(service: str, name: str) -> st.SearchStrategy[Any]:
    shape = model.operation(service, name).input_shape
    if shape is None:
        return st.just({})
    found = anything(shape)
    likely = {member: value for member, value in LIKELY.items() if member in shape.members} | TAKEN.get(name, {})
    return found | found.map(lambda made: {**made, **likely}) | st.just(likely) if likely else found


@functools.cache
def _serialiser(service: str) -> Any:
    return create_serializer(model.load(service).metadata["protocol"], include_validation=False)


def _sent(service: str, name: str, parameters: dict[str, Any]) -> dict[str, Any] | None:
    """The request as botocore makes it; None for parameters that it cannot send."""
    try:
        made = _serialiser(service).serialize_to_request(parameters, model.operation(service, name))
        body, query = made["body"], made["query_string"]
        body = urlencode(body).encode() if isinstance(body, dict) else body.encode() if isinstance(body, str) else body
        query = urlencode(query, doseq=True) if isinstance(query, dict) else query
    except (ValueError, KeyError, TypeError, OverflowError, OSError, AttributeError):
        return None
    path, _, fixed = made["url_path"].partition("?")
    headers = {key.lower(): str(value) for key, value in made["headers"].items()}
    return {"method": made["method"], "path": quote(path, safe="/%~"), "query": "&".join(filter(None, (fixed, query))),
            "headers": headers, "body": bytes(body)}  # fmt: skip


@st.composite
def requests(draw: st.DrawFn) -> Request:
    """A request for any operation: valid, or with some of its parts replaced."""
    service, name = draw(st.sampled_from(CASES))
    made = _sent(service, name, draw(_parameters(service, name)))
    if made is None:
        made = {"method": "GET", "path": "/bucket", "query": "", "headers": {}, "body": b""}
    for part in draw(st.sets(st.integers(0, 5), max_size=2)):
        if part == 0:
            made["method"] = draw(methods)
        elif part == 1:
            made["path"] = "/" + "/".join(draw(st.lists(wild_text, max_size=4)))
        elif part == 2:
            made["query"] = "&".join([made["query"], *draw(st.lists(queries, min_size=1, max_size=3))])
        elif part == 3:
            made["headers"].update(draw(st.dictionaries(names, values, max_size=3)))
        elif part == 4:
            made["body"] = _bent(draw, made["body"])
        else:
            made["body"] = draw(wild_bodies)
    size, body = draw(st.integers(1, 50)), made["body"]
    chunks = iter([body[at : at + size] for at in range(0, len(body), size)])
    headers = {_received(name): _received(value) for name, value in made["headers"].items()}
    return Request(
        method=made["method"],
        path=_received(made["path"]),
        query=made["query"],
        headers=headers,
        chunks=chunks,
        peer="127.0.0.1",
    )


def _received(text: str) -> str:
    """As a server's HTTP parser hands it on: bytes as Latin-1, of one line, without NULs."""
    return re.sub(r"[\r\n\0]", "", text.encode("utf-8", "surrogatepass").decode("latin-1")).strip()


def _bent(draw: st.DrawFn, body: bytes) -> bytes:
    """A body with a value of it replaced; what is no JSON is cut, or has a byte flipped."""
    try:
        root = copy.deepcopy(json.loads(body))
    except ValueError:
        at = draw(st.integers(0, len(body)))
        return body[:at] + draw(st.binary(max_size=2)) + body[at + draw(st.integers(0, 3)) :]
    holder: Any = None
    key: Any = None
    value = root
    while isinstance(value, dict | list) and value and (holder is None or draw(st.booleans())):
        holder, key = value, draw(st.sampled_from(sorted(value) if isinstance(value, dict) else range(len(value))))
        value = value[key]
    if holder is not None:
        holder[key] = draw(wild_json)
    return json.dumps(root).encode("utf-8", "surrogatepass")


@pytest.fixture(scope="module")
def wire(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WholeWire]:
    with whole_wire(tmp_path_factory.mktemp("whole") / "home") as made:
        yield made


def ask_all(wire: WholeWire, how: settings) -> None:
    asked = 0

    @how
    @given(requests())
    def ask(request: Request) -> None:
        nonlocal asked
        if asked % SEEDED_EVERY == 0:
            wire.seed()
        asked += 1
        wire.answer(request)

    ask()


def test_any_request_of_all_services(wire: WholeWire) -> None:
    ask_all(wire, QUICK)
    assert wire.statuses[200] > FEW / 10, wire.statuses


@pytest.mark.slow
def test_any_request_of_all_services_at_length(wire: WholeWire) -> None:
    ask_all(wire, SLOW)
    assert {f"{service}.{name}" for service, name in CASES} == set(wire.asked)
    print(f"{wire.statuses.total()} requests, the slowest {wire.slowest:.2f} s of work, {dict(wire.statuses)}")
