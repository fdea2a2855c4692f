"""JSON bodies: types as the model says, nothing coerced, nothing that breaks the reader."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from moto.core.model import Shape

from luthier.protocol import jsonbody, model
from luthier.protocol.errors import WireError


def shape(operation: str = "CreateAutoMLJobV2") -> Shape:
    found: Shape = model.operation("sagemaker", operation).input_shape
    return found


def refusal(value: Any, operation: str = "CreateTrainingJob") -> str:
    with pytest.raises(WireError) as caught:
        jsonbody.parse(shape(operation), value)
    assert (caught.value.code, caught.value.status) == ("SerializationException", 400)
    return caught.value.message


@pytest.mark.parametrize("body", [b"", b"  ", b"{}"])
def test_an_empty_body_is_an_empty_object(body: bytes) -> None:
    assert jsonbody.read(body) == {}


@pytest.mark.parametrize(
    "body",
    [
        b"{", b"nul", b"\xff{}", b"\xc3\x28", b'{"a": NaN}', b"[Infinity]", b"[-Infinity]", b"[" * 100_000,
        b'{"a":' * 100_000, b"1" * 5_000, b'"\x01"', b"{} {}", b"\xef\xbb\xbf{}",
    ],
)  # fmt: skip
def test_what_is_not_json(body: bytes) -> None:
    with pytest.raises(WireError) as caught:
        jsonbody.read(body)
    assert caught.value.code == "SerializationException"
    assert len(caught.value.message) < 500


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([], "Start of list found where a structure was expected"),
        ("x", "STRING_VALUE found where a structure was expected"),
        ({"TrainingJobName": 1}, "NUMBER_VALUE found where a String was expected at 'TrainingJobName'"),
        ({"TrainingJobName": True}, "BOOLEAN_VALUE found where a String was expected at 'TrainingJobName'"),
        ({"TrainingJobName": {}}, "Start of structure or map found where a String"),
        ({"InputDataConfig": "x"}, "STRING_VALUE found where a list was expected at 'InputDataConfig'"),
        ({"InputDataConfig": [3]}, "at 'InputDataConfig[0]'"),
        ({"InputDataConfig": [None]}, "Null found in a list at 'InputDataConfig'"),
        ({"HyperParameters": {"epochs": 3}},
         "NUMBER_VALUE found where a String was expected at 'HyperParameters.epochs'"),
        ({"HyperParameters": {"epochs": None}}, "Null found as the value of a map"),
        ({"HyperParameters": []}, "a map was expected"),
        ({"StoppingCondition": {"MaxRuntimeInSeconds": "3600"}}, "an Integer was expected"),
        ({"StoppingCondition": {"MaxRuntimeInSeconds": 1.5}}, "can not be converted to an Integer"),
        ({"StoppingCondition": {"MaxRuntimeInSeconds": True}}, "BOOLEAN_VALUE"),
        ({"StoppingCondition": {"MaxRuntimeInSeconds": 2**31}}, "does not fit into 32 bits"),
        ({"StoppingCondition": {"MaxRuntimeInSeconds": 1e300}}, "does not fit into 32 bits"),
        ({"EnableNetworkIsolation": "true"}, "a Boolean was expected"),
        ({"TrainingJobName": "a\x00b"}, "NUL"),
        ({"TrainingJobName": "\ud800"}, "surrogate"),
    ],
)  # fmt: skip
def test_another_type_than_the_model_s(value: Any, said: str) -> None:
    assert said in refusal(value)


def test_numbers_and_times() -> None:
    parsed = jsonbody.parse(shape("ListTrainingJobs"), {"MaxResults": 5.0, "CreationTimeAfter": 1795220318.62})
    assert parsed == {"MaxResults": 5, "CreationTimeAfter": datetime.fromtimestamp(1795220318.62, UTC)}
    parsed = jsonbody.parse(shape("ListTrainingJobs"), {"CreationTimeAfter": "2030-01-02T03:04:05Z"})
    assert parsed == {"CreationTimeAfter": datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)}
    fraction = jsonbody.parse(shape(), {"DataSplitConfig": {"ValidationFraction": 0}})
    assert fraction == {"DataSplitConfig": {"ValidationFraction": 0.0}}


@pytest.mark.parametrize("moment", ["yesterday", 1e18, -1e300, [], True])
def test_what_is_no_time(moment: Any) -> None:
    refusal({"CreationTimeAfter": moment}, "ListTrainingJobs")


@pytest.mark.parametrize("number", ["0.5", True, 10**400])
def test_what_is_no_float(number: Any) -> None:
    refusal({"DataSplitConfig": {"ValidationFraction": number}}, "CreateAutoMLJobV2")


def test_nulls_and_unknown_members_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "luthier.protocol.jsonbody")
    parsed = jsonbody.parse(shape(), {"AutoMLJobName": "a", "RoleArn": None, "Colour": "red"})
    assert parsed == {"AutoMLJobName": "a"}
    assert "Colour" in caplog.text


def test_blobs_are_base64() -> None:
    blob = next(
        candidate for candidate in map(model.load("logs").shape_for, model.load("logs").shape_names)
        if candidate.type_name == "blob"
    )  # fmt: skip
    assert jsonbody.parse(blob, "AP8=") == b"\x00\xff"
    with pytest.raises(WireError, match="base64"):
        jsonbody.parse(blob, "A*")


def test_a_shape_that_holds_itself_is_bounded() -> None:
    deep: Any = {}
    for _ in range(300):
        deep = {"SubExpressions": [deep]}
    refusal({"Resource": "TrainingJob", "SearchExpression": deep}, "Search")
    assert len(json.dumps(deep)) < 10_000
