"""Any request whose shape is right gets an answer or a refusal: never a failure of ours, never a hang."""

from __future__ import annotations

import json
from typing import Any

import pytest
from api.shape_values import anything
from api.wire_client import WireClient, automl_job, training_job
from hypothesis import HealthCheck, given, settings

from luthier.api import OPERATIONS
from luthier.protocol import model
from luthier.protocol.message import Request

TARGETS = {"sagemaker": "SageMaker", "logs": "Logs_20140328"}
# Requests that are taken; further fields are added to them, so that the rules behind the first ones are reached, too.
VARIANT = {"VariantName": "a", "ModelName": "a", "InitialInstanceCount": 1, "InstanceType": "ml.g5.xlarge"}
TAKEN: dict[str, dict[str, Any]] = {
    "CreateTrainingJob": training_job("new"),
    "CreateAutoMLJobV2": automl_job("new"),
    "CreateModel": {"ModelName": "new", "PrimaryContainer": {"ModelDataUrl": "s3://bucket/x"}},
    "CreateEndpointConfig": {"EndpointConfigName": "new", "ProductionVariants": [VARIANT]},
    "CreateEndpoint": {"EndpointName": "new", "EndpointConfigName": "a"},
}
CASES = [(service, name) for service in TARGETS for name in OPERATIONS[service]]


@pytest.mark.parametrize(("service", "name"), CASES, ids=[name for _, name in CASES])
def test_no_request_makes_the_server_fail(wire: WireClient, service: str, name: str) -> None:
    shape = model.operation(service, name).input_shape
    assert shape is not None
    client = wire.client()
    client.create_training_job(**training_job())
    client.create_auto_ml_job_v2(**automl_job())
    client.create_model(ModelName="a", PrimaryContainer={"ModelDataUrl": "s3://bucket/x"})
    client.create_endpoint_config(EndpointConfigName="a", ProductionVariants=[VARIANT])
    client.create_endpoint(EndpointName="a", EndpointConfigName="a")
    answered: list[int] = []
    asked = anything(shape)
    if name in TAKEN:
        asked |= anything(shape).map(lambda found: found | TAKEN[name])

    @settings(max_examples=25, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(asked)
    def ask(parameters: dict[str, Any]) -> None:
        target = f"{TARGETS[service]}.{name}"
        headers = {"content-type": "application/x-amz-json-1.1", "x-amz-target": target, "host": "desk.test"}
        answer = wire.answer(
            Request(
                method="POST",
                path="/",
                query="",
                headers=headers,
                chunks=iter((json.dumps(parameters).encode(),)),
                peer="127.0.0.1",
            )
        )
        assert answer.status < 500, (parameters, answer.body)
        answered.append(answer.status)

    ask()
    assert answered
