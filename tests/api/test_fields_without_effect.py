"""The table of fields without meaning: every one is a field, and no field of a training job is overlooked."""

from __future__ import annotations

from typing import Any

import pytest
from api.wire_client import WireClient, training_job

from luthier.api import OPERATIONS
from luthier.api.fields_without_effect import FIELDS as FIELDS_WITHOUT_EFFECT
from luthier.protocol import model

# What the operations read, or refuse.
READ = {
    "CreateTrainingJob": {"TrainingJobName", "HyperParameters", "OutputDataConfig", "Tags", "ServerlessJobConfig"},
    "CreateAutoMLJobV2": {
        "AutoMLJobName", "AutoMLJobInputDataConfig", "OutputDataConfig", "AutoMLProblemTypeConfig", "Tags",
        "AutoMLJobObjective", "ModelDeployConfig", "DataSplitConfig", "AutoMLComputeConfig",
    },
    "CreateModel": {"ModelName", "Tags"},
    "CreateEndpointConfig": {
        "EndpointConfigName", "Tags", "KmsKeyId", "DataCaptureConfig", "AsyncInferenceConfig", "ExplainerConfig",
        "ShadowProductionVariants",
    },
    "CreateEndpoint": {"EndpointName", "EndpointConfigName", "Tags"},
}  # fmt: skip


@pytest.mark.parametrize(
    ("operation", "path"), [(name, path) for name, table in FIELDS_WITHOUT_EFFECT.items() for path in table]
)
def test_every_path_is_one_of_the_model(operation: str, path: str) -> None:
    assert operation in OPERATIONS["sagemaker"]
    shape: Any = model.operation("sagemaker", operation).input_shape
    for part in path.split("."):
        while shape.type_name == "list":
            shape = shape.member
        shape = shape.members[part]


@pytest.mark.parametrize("operation", READ)
def test_every_field_is_read_refused_or_in_the_table(operation: str) -> None:
    known = READ[operation] | {path.split(".")[0] for path in FIELDS_WITHOUT_EFFECT[operation]}
    shape = model.operation("sagemaker", operation).input_shape
    assert shape is not None
    assert set(shape.members) == known


def test_a_hyperparameter_may_be_called_like_a_key(wire: WireClient) -> None:
    client = wire.client()
    client.create_training_job(**training_job(Environment={"LUTHIER_MODEL": "tiny", "MyKmsKeyId": "x"}))
    code, message = wire.refusal(client.create_training_job, **training_job("b", HyperParameters={"KmsKeyId": "x"}))
    assert (code, message) == ("ValidationException", "unknown hyperparameter 'KmsKeyId'")
