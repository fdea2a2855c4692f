"""What the SDKs read as their defaults."""

from __future__ import annotations

import yaml

from luthier.service import sdk_defaults


def test_the_file_is_plain_and_names_bucket_and_roles() -> None:
    found = sdk_defaults.bucket().find("local-sagemaker-config", "config.yaml")
    assert found is not None
    text = found[1].decode()
    assert "&" not in text
    assert "*" not in text
    content = yaml.safe_load(text)["SageMaker"]
    assert content["PythonSDK"]["Modules"] == {
        "Session": {"DefaultS3Bucket": "sagemaker-local-123456789012"}, "TelemetryOptOut": True,
    }  # fmt: skip
    roles = {content["AutoMLJobV2"]["RoleArn"], content["TrainingJob"]["RoleArn"], content["Model"]["ExecutionRoleArn"]}
    assert roles == {"arn:aws:iam::123456789012:role/LuthierExecutionRole"}


def test_nothing_else_is_there() -> None:
    assert sdk_defaults.bucket().find("local-sagemaker-config", "other.yaml") is None
    assert not sdk_defaults.bucket().matches("local-sagemaker-config2")
