"""Constraints in AWS's words, all of a request's violations in one answer."""

from __future__ import annotations

import time
from typing import Any

import pytest
import regex
from shape_samples import sample

from luthier.protocol import model, validate
from luthier.protocol.errors import WireError

NAME = "[a-zA-Z0-9](-*[a-zA-Z0-9]){0,31}"


def given(operation: str = "CreateAutoMLJobV2", **members: Any) -> dict[str, Any]:
    whole: dict[str, Any] = sample(model.operation("sagemaker", operation).input_shape)
    return {name: value for name, value in {**whole, **members}.items() if value is not None}


def refusal(parameters: dict[str, Any], operation: str = "CreateAutoMLJobV2", service: str = "sagemaker") -> str:
    with pytest.raises(WireError) as caught:
        validate.validate(model.operation(service, operation), parameters)
    assert (caught.value.code, caught.value.status) == ("ValidationException", 400)
    return caught.value.message


def failed(path: str, value: str, constraint: str) -> str:
    return f"Value {value} at '{path}' failed to satisfy constraint: {constraint}"


def test_what_the_model_allows() -> None:
    validate.validate(model.operation("sagemaker", "CreateAutoMLJobV2"), given())


def test_one_and_several_violations_in_one_message() -> None:
    name = "x" * 33
    too_long = failed("autoMLJobName", f"'{name}'", "Member must have length less than or equal to 32")
    unlike = failed("autoMLJobName", f"'{name}'", f"Member must satisfy regular expression pattern: {NAME}")
    assert refusal(given(AutoMLJobName=name)) == f"2 validation errors detected: {too_long}; {unlike}"
    missing = "Value null at 'roleArn' failed to satisfy constraint: Member must not be null"
    assert refusal(given(RoleArn=None)) == f"1 validation error detected: {missing}"
    assert refusal(given(AutoMLJobName=name, RoleArn=None)).startswith("3 validation errors detected: ")


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({"AutoMLJobInputDataConfig": []},
         failed("autoMLJobInputDataConfig", "'[]'", "Member must have length greater than or equal to 1")),
        ({"AutoMLJobInputDataConfig": [{"ChannelType": "test", "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix",
          "S3Uri": "s3://b/k"}}}]},
         failed("autoMLJobInputDataConfig.1.member.channelType", "'test'",
                "Member must satisfy enum value set: [training, validation]")),
        ({"AutoMLJobInputDataConfig": [{"DataSource": {"S3DataSource": {"S3DataType": "S3Prefix"}}}]},
         "Value null at 'autoMLJobInputDataConfig.1.member.dataSource.s3DataSource.s3Uri' failed to satisfy "
         "constraint: Member must not be null"),
        ({"DataSplitConfig": {"ValidationFraction": 1.5}},
         failed("dataSplitConfig.validationFraction", "'1.5'", "Member must have value less than or equal to 1")),
        ({"DataSplitConfig": {"ValidationFraction": -0.1}},
         failed("dataSplitConfig.validationFraction", "'-0.1'", "Member must have value greater than or equal to 0")),
        ({"Tags": [{"Key": "", "Value": "v"}]},
         failed("tags.1.member.key", "''", "Member must have length greater than or equal to 1")),
        ({"AutoMLProblemTypeConfig": {}},
         "at 'autoMLProblemTypeConfig' failed to satisfy constraint: Member must have exactly one of these members "
         "set: [imageClassificationJobConfig, textClassificationJobConfig, "),
    ],
)  # fmt: skip
def test_each_constraint(members: dict[str, Any], expected: str) -> None:
    assert expected in refusal(given(**members))


def test_two_members_of_a_union() -> None:
    both: dict[str, Any] = {"TextGenerationJobConfig": {}, "ImageClassificationJobConfig": {}}
    assert "exactly one of these members" in refusal(given(AutoMLProblemTypeConfig=both))


def test_maps_name_all_constraints_of_their_keys_and_values() -> None:
    parameters = {"epoch count": "1", "batchSize": "x" * 17}
    config = {"TextGenerationJobConfig": {"TextGenerationHyperParameters": parameters}}
    message = refusal(given(AutoMLProblemTypeConfig=config))
    path = "autoMLProblemTypeConfig.textGenerationJobConfig.textGenerationHyperParameters"
    shown = "'{epoch count=1, batchSize=" + "x" * 17 + "}'"
    keys = "Map keys must satisfy constraint: [Member must have length less than or equal to 32, "
    values = "Map value must satisfy constraint: [Member must have length less than or equal to 16, "
    assert f"Value {shown} at '{path}' failed to satisfy constraint: {keys}" in message
    assert f"Value {shown} at '{path}' failed to satisfy constraint: {values}" in message


def test_lists_of_scalars_name_the_list() -> None:
    security = {"VpcConfig": {"SecurityGroupIds": ["sg 1"], "Subnets": ["subnet-1"]}}
    message = refusal(given(SecurityConfig=security))
    assert (
        "Value '[sg 1]' at 'securityConfig.vpcConfig.securityGroupIds' failed to satisfy constraint: Member must "
        in message
    )


@pytest.mark.parametrize(
    ("service", "operation", "parameters"),
    [
        ("sagemaker-runtime", "InvokeEndpoint", {"EndpointName": "e", "Body": b"x" * 6_291_457}),
        ("sagemaker", "CreateEndpointConfig", {"EndpointConfigName": "-", "ProductionVariants": []}),
        ("s3", "PutObject", {"Bucket": "b", "Key": "", "Body": iter([b"x"]), "StorageClass": "COLD"}),
    ],
)
def test_other_services(service: str, operation: str, parameters: dict[str, Any]) -> None:
    assert "failed to satisfy constraint" in refusal(parameters, operation, service)


def test_a_body_that_streams_is_not_measured() -> None:
    validate.validate(model.operation("s3", "PutObject"), {"Bucket": "b", "Key": "k", "Body": iter([b"x"])})


def test_values_that_are_secret_or_long_are_not_shown_whole() -> None:
    long = refusal(given(RoleArn="r" * 5000))
    assert f"Value '{'r' * validate.MAX_SHOWN}...' at 'roleArn'" in long
    secret = refusal({"EndpointName": "e", "Body": b"x" * 6_291_457}, "InvokeEndpoint", "sagemaker-runtime")
    assert "Value at 'body' failed" in secret


def test_an_answer_is_bounded() -> None:
    tags: list[dict[str, str]] = [{} for _ in range(5000)]
    message = refusal(given(Tags=tags))
    assert message.startswith(f"{validate.MAX_VIOLATIONS} validation errors detected: ")
    assert message.endswith("; there may be more, the check ended here")
    assert len(message) < 200_000


def test_every_pattern_of_every_service_compiles() -> None:
    patterns = {
        shape.metadata["pattern"]
        for service in model.SERVICES
        for shape in map(model.load(service).shape_for, model.load(service).shape_names)
        if "pattern" in shape.metadata
    }
    assert len(patterns) > 300
    for pattern in patterns:
        assert isinstance(validate._compiled(pattern), regex.Pattern)


def test_a_hostile_value_does_not_hold_a_thread() -> None:
    started = time.monotonic()
    assert not validate.matches("[a-z0-9]([-a-z0-9]*[a-z0-9]){0,39}?", "a" * 5000 + "!")
    assert time.monotonic() - started < 10 * validate.PATTERN_SECONDS


def test_many_hostile_values_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validate, "MAX_SECONDS", 0.1)
    monkeypatch.setattr(validate, "matches", lambda pattern, value: time.sleep(0.1))
    started = time.monotonic()
    assert refusal(given()).endswith("; there may be more, the check ended here")
    assert time.monotonic() - started < 5


def test_a_pattern_that_takes_too_long_does_not_match(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validate, "PATTERN_SECONDS", 0.05)
    started = time.monotonic()
    assert not validate.matches(r"(a|aa)+\1*b$|(a+)+c", "a" * 40)
    assert time.monotonic() - started < 2


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [
        (NAME, "abc-1", True),
        (NAME, "abc-1\n", False),
        (r"([\p{L}\p{Z}\p{N}_.:/=+\-@]*)", "Größe 大", True),
        (r".*", "two\nlines", False),
        (r"[\u0020-\uD7FF\uE000-\uFFFD\uD800\uDC00-\uDBFF\uDFFF\t]*", "text 😀", True),
    ],
)
def test_patterns_are_of_the_whole_value(pattern: str, text: str, expected: bool) -> None:
    assert validate.matches(pattern, text) is expected
