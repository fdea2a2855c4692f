"""What botocore's own serializers write for each operation of each service is routed and parsed as it was given."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

import pytest
from botocore.serialize import create_serializer
from shape_samples import Unknown, sample

from luthier.protocol import codec, dispatch, model
from luthier.protocol.errors import WireError
from luthier.protocol.message import Request

# Requests that are those of another operation too.
SAME_REQUEST = {
    "GetBucketLifecycle": "GetBucketLifecycleConfiguration",
    "GetBucketNotification": "GetBucketNotificationConfiguration",
    "ListDirectoryBuckets": "ListBuckets",
    "PutBucketLifecycle": "PutBucketLifecycleConfiguration",
    "PutBucketNotification": "PutBucketNotificationConfiguration",
}


def serialised(service: str, name: str, parameters: dict[str, Any]) -> Request:
    protocol = model.load(service).metadata["protocol"]
    made = create_serializer(protocol, False).serialize_to_request(parameters, model.operation(service, name))
    path, _, literals = made["url_path"].partition("?")
    query = "&".join(part for part in (literals, urlencode(made["query_string"], doseq=True)) if part)
    headers = {key.lower(): str(value) for key, value in made["headers"].items()}
    body = urlencode(made["body"], doseq=True) if isinstance(made["body"], dict) else made["body"]
    return Request(
        method=made["method"],
        path=path,
        query=query,
        headers=headers,
        chunks=iter([body.encode() if isinstance(body, str) else body]),
    )


def parse(service: str, request: Request) -> tuple[str, dict[str, Any]]:
    route = dispatch.find(request, service)
    wire_protocol = dispatch.wire_protocol_of(request, route.service)
    parsed = codec.parse(model.operation(route.service, route.operation), request, route.labels, wire_protocol)
    streamed = {name: b"".join(value) for name, value in parsed.items() if hasattr(value, "__next__")}
    return route.operation, parsed | streamed


@pytest.mark.parametrize("service", model.SERVICES)
def test_each_operation_is_parsed_as_it_was_given(service: str) -> None:
    checked = 0
    for name in model.load(service).operation_names:
        shape = model.operation(service, name).input_shape
        try:
            given = sample(shape) if shape is not None else {}
        except Unknown:
            continue
        for parameters in (given, {key: given[key] for key in (shape.required_members if shape is not None else ())}):
            operation, parsed = parse(service, serialised(service, name, parameters))
            assert operation == SAME_REQUEST.get(name, name)
            if operation == name:
                headers = {key for key in parsed.keys() - parameters.keys() if parsed[key] in ({}, b"")}
                assert {key: value for key, value in parsed.items() if key not in headers} == parameters
                checked += 1
    assert checked > 1.7 * len(model.load(service).operation_names)


def test_labels_keep_their_slashes() -> None:
    cases = {"//b": "/b", "///": "/", "/b/": "b", "/a%2Fb": "a/b"}
    for path, bucket in cases.items():
        assert dispatch.find(Request(method="GET", path=path), "s3").labels == {"Bucket": bucket}
    assert dispatch.find(Request(method="GET", path="//a//b/"), "s3").labels == {"Bucket": "/a", "Key": "/b/"}


@pytest.mark.parametrize(
    "body",
    [
        b"<Delete><Object><Key>a</Key><Key>b</Key></Object></Delete>",
        b"<Delete><Quiet>true</Quiet><Quiet>true</Quiet></Delete>",
        b"<Delete><Object><LastModifiedTime>now</LastModifiedTime></Object></Delete>",
    ],
)
def test_elements_of_another_type(body: bytes) -> None:
    with pytest.raises(WireError) as caught:
        parse("s3", Request(method="POST", path="/b", query="delete", chunks=iter([body])))
    assert caught.value.code == "ValidationException"


def test_a_form_s_lists_and_maps() -> None:
    form = "Action=SimulatePrincipalPolicy&ActionNames=&ContextEntries.member.1.ContextKeyName=a&PolicySourceArn=x"
    headers = {"content-type": "application/x-www-form-urlencoded"}
    _, parsed = parse("iam", Request(method="POST", path="/", query="", headers=headers, chunks=iter([form.encode()])))
    assert parsed == {"ActionNames": [], "ContextEntries": [{"ContextKeyName": "a"}], "PolicySourceArn": "x"}
