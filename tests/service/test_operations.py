"""What the service checks before an operation: that the results of a job have a bucket to go to."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from api.wire_client import automl_job, training_job
from service.whole_wire import WholeWire

from luthier.errors import ObjectStoreUnreachableError
from luthier.protocol.message import Request


@pytest.fixture
def wire(tmp_path: Path) -> Iterator[WholeWire]:
    made = WholeWire(tmp_path)
    yield made
    made.close()


def call(wire: WholeWire, name: str, parameters: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    headers = {"x-amz-target": f"SageMaker.{name}", "content-type": "application/x-amz-json-1.1"}
    body = json.dumps(parameters).encode()
    answer = wire.answer(Request(method="POST", path="/", query="", headers=headers, chunks=iter((body,))))
    assert isinstance(answer.body, bytes)
    return answer.status, json.loads(answer.body)


@pytest.mark.parametrize(
    ("name", "request_of"), [("CreateTrainingJob", training_job), ("CreateAutoMLJobV2", automl_job)]
)
def test_a_missing_output_bucket_is_found_at_creation(wire: WholeWire, name: str, request_of: Any) -> None:
    status, error = call(wire, name, request_of("job"))
    assert (status, error["__type"]) == (400, "ValidationException")
    assert error["Message"].startswith("OutputDataConfig.S3OutputPath: s3://bucket/out")
    assert "The specified bucket does not exist" in error["Message"]
    wire.objects.create_bucket("bucket", "123456789012", "us-east-1")
    assert call(wire, name, request_of("job"))[0] == 200


def test_a_store_that_does_not_answer_now_is_no_reason(wire: WholeWire, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(uri: str) -> None:
        raise ObjectStoreUnreachableError("the object store fails")

    monkeypatch.setattr(wire.objects, "check_bucket", unreachable)
    assert call(wire, "CreateTrainingJob", training_job("job"))[0] == 200
