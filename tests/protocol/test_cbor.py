"""CloudWatch's three protocols: the same call and answer in each, and CBOR bodies that are broken."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

import pytest
from botocore import parsers, serialize
from botocore.model import ServiceModel

from luthier.protocol import cbor, model
from luthier.protocol.call import Call, Principal
from luthier.protocol.errors import WireError
from luthier.protocol.gateway import Gateway
from luthier.protocol.message import Request, Response

MOMENT = datetime(2026, 12, 1, 12, 30, tzinfo=UTC)
REQUEST = {
    "Namespace": "/aws/sagemaker/TrainingJobs", "MetricName": "train-loss", "Period": 60, "Statistics": ["Average"],
    "StartTime": MOMENT, "EndTime": MOMENT, "Dimensions": [{"Name": "TrainingJobName", "Value": "job ü"}],
}  # fmt: skip
ANSWER = {"Label": "train-loss", "Datapoints": [{"Timestamp": MOMENT, "Average": 1.5, "Unit": "None"}]}
NAMES = {"smithy-rpc-v2-cbor": "cbor", "json": "json", "query": "query"}


def operation(protocol: str) -> Any:
    """GetMetricStatistics, of a service that has only this protocol."""
    loaded = model.load("cloudwatch")
    service = ServiceModel({**loaded._service_description, "metadata": {**loaded.metadata, "protocol": protocol}},
                           "cloudwatch")  # fmt: skip
    return service.operation_model("GetMetricStatistics")


def sent(protocol: str, operate: Any) -> Any:
    """What botocore's own parser makes of the gateway's response to botocore's own request."""
    made = operation(protocol)
    parts = serialize.create_serializer(protocol, False).serialize_to_request(REQUEST, made)
    body = parts["body"]
    if isinstance(body, dict):
        body = urlencode(body).encode()
    headers = {name.lower(): str(value) for name, value in parts["headers"].items()}
    gateway = Gateway(operate, {"cloudwatch": {"GetMetricStatistics"}}, lambda request, service: Principal())
    response: Response = gateway.respond(
        Request(method="POST", path=parts["url_path"], query="", headers=headers, chunks=iter([body]))
    )
    whole = response.body if isinstance(response.body, bytes) else b"".join(response.body)
    reply = {
        "status_code": response.status,
        "headers": {k.lower(): v for k, v in response.headers.items()},
        "body": whole,
    }
    return parsers.create_parser(protocol).parse(reply, made.output_shape)


@pytest.mark.parametrize("protocol", NAMES)
def test_a_call_and_its_answer(protocol: str) -> None:
    calls: list[Call] = []

    def operate(call: Call) -> Any:
        calls.append(call)
        return ANSWER

    answer = sent(protocol, operate)
    assert calls[0].parameters == REQUEST
    assert answer.pop("ResponseMetadata")["HTTPStatusCode"] == 200
    (point,) = answer["Datapoints"]
    assert (answer["Label"], point["Average"], point["Unit"]) == ("train-loss", 1.5, "None")
    assert point["Timestamp"] == MOMENT


@pytest.mark.parametrize("protocol", NAMES)
def test_an_error(protocol: str) -> None:
    def operate(call: Call) -> Any:
        raise WireError("InvalidParameterValue", "no such period")

    error = sent(protocol, operate)["Error"]
    assert (error["Code"], error["Message"]) == ("InvalidParameterValue", "no such period")


@pytest.mark.parametrize(
    "body",
    [b"\xff", b"\x81", b"\xa1\x01", b"\x5f", b"\x1b", b"\xa0\xa0", b"\x7f\x61", b"\x81" * 50_000, b"\xbf" * 50_000,
     b"\xc1\x63abc", json.dumps(ANSWER, default=str).encode()],
)  # fmt: skip
def test_a_broken_body_is_an_error(body: bytes) -> None:
    with pytest.raises(WireError, match="CBOR") as refused:
        cbor.read(body)
    assert refused.value.code == "SerializationException"


def test_an_empty_body_is_an_empty_map() -> None:
    assert cbor.read(b"") == {}
