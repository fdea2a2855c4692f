"""A service without a server: real boto3 clients whose requests are answered in this process.

Every answer of an operation is checked against its published output shape: what is required is there, nothing is there
that the shape does not know, and every type is right.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
import botocore.awsrequest
from botocore.config import Config
from botocore.exceptions import ClientError
from botocore.validate import ParamValidator

from luthier.api import OPERATIONS
from luthier.api.service import Service
from luthier.jobs.schema import resources, tags
from luthier.jobs.settings import ServiceSettings
from luthier.jobs.store import Store
from luthier.protocol import model
from luthier.protocol.call import GLOBAL_REGION, Call, Principal
from luthier.protocol.gateway import Gateway
from luthier.protocol.message import Request, Response

ACCOUNT = "123456789012"
OWNER = (ACCOUNT, GLOBAL_REGION)
_SESSION = boto3.Session()  # reads each service's model once
ROLE = f"arn:aws:iam::{ACCOUNT}:role/SageMakerRole"


class WireClient:
    """A service on an SQLite store in `folder`, and clients of it."""

    def __init__(self, folder: Path) -> None:
        self.store = Store.open(f"sqlite:///{folder / 'luthier.sqlite'}")
        self.service = Service(ServiceSettings(home=folder), self.store)
        self.principal = Principal()
        self._gateway = Gateway(self._operate, OPERATIONS, lambda request, service: self.principal)
        self._clients: dict[tuple[str, str], Any] = {}

    def reset(self) -> None:
        """Forget everything that was created, said and set."""
        with self.store.write() as connection:
            for table in (resources, tags):
                connection.execute(table.delete())
        self.service.logged.clear()
        self.principal = Principal()

    def client(self, name: str = "sagemaker", region: str = GLOBAL_REGION) -> Any:
        """A boto3 client of this service; the same one each time, as making one takes long."""
        if (name, region) not in self._clients:
            self._clients[name, region] = self._new_client(name, region)
        return self._clients[name, region]

    def _new_client(self, name: str, region: str) -> Any:
        client = _SESSION.client(
            name, region_name=region, aws_access_key_id="AKIATEST", aws_secret_access_key="secret",
            endpoint_url="http://desk.test",
            config=Config(retries={"total_max_attempts": 1}, parameter_validation=False),
        )  # fmt: skip
        client.meta.events.register("before-send", self._send)
        return client

    def answer(self, request: Request) -> Response:
        """The answer to a request as it comes over the wire."""
        return self._gateway.respond(request)

    def refusal(self, call: Callable[..., Any], **parameters: Any) -> tuple[str, str]:
        """Code and message of the error that the call is answered with."""
        try:
            call(**parameters)
        except ClientError as error:
            return error.response["Error"]["Code"], error.response["Error"]["Message"]
        raise AssertionError("the call was not refused")

    def _operate(self, call: Call) -> Any:
        answer = OPERATIONS[call.service][call.operation](call, self.service)
        shape = model.operation(call.service, call.operation).output_shape
        if shape is None:
            assert answer == {}
        elif shape.serialization.get("payload") is None:
            report = ParamValidator().validate(answer, shape)
            assert not report.has_errors(), report.generate_report()
        return answer

    def _send(self, request: Any, **_: Any) -> botocore.awsrequest.AWSResponse:
        parts = urlsplit(request.url)
        headers = {
            name.lower(): value.decode() if isinstance(value, bytes) else value
            for name, value in request.headers.items()
        }
        body = request.body or b""
        data = body.encode() if isinstance(body, str) else bytes(body)
        sent = Request(
            method=request.method,
            path=parts.path,
            query=parts.query,
            headers=headers,
            chunks=iter((data,)),
            peer="127.0.0.1",
        )
        answer = self.answer(sent)
        return botocore.awsrequest.AWSResponse(request.url, answer.status, answer.headers, _Raw(answer))


class _Raw:
    """An answer's body as urllib3 gives it: to be streamed, or to be read whole."""

    def __init__(self, answer: Response) -> None:
        self._chunks = iter((answer.body,)) if isinstance(answer.body, bytes) else iter(answer.body)

    def stream(self, *_: Any, **__: Any) -> Any:
        yield from self._chunks

    def read(self, *_: Any, **__: Any) -> bytes:
        return b"".join(self._chunks)


def channel(name: str, uri: str = "s3://bucket/rows/", **source: Any) -> dict[str, Any]:
    """A channel of a training job."""
    return {"ChannelName": name, "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": uri, **source}}}


def training_job(name: str = "job", **more: Any) -> dict[str, Any]:
    """A CreateTrainingJob that is taken."""
    return {
        "TrainingJobName": name,
        "RoleArn": ROLE,
        "OutputDataConfig": {"S3OutputPath": "s3://bucket/out/"},
        "InputDataConfig": [channel("training")],
        "Environment": {"LUTHIER_MODEL": "luthier/tiny"},
        "StoppingCondition": {"MaxRuntimeInSeconds": 600},
    } | more


def automl_job(name: str = "auto", config: Mapping[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """A CreateAutoMLJobV2 that is taken."""
    return {
        "AutoMLJobName": name,
        "RoleArn": ROLE,
        "OutputDataConfig": {"S3OutputPath": "s3://bucket/out"},
        "AutoMLJobInputDataConfig": [automl_channel()],
        "AutoMLProblemTypeConfig": {"TextGenerationJobConfig": dict(config or {})},
    } | more


def automl_channel(**more: Any) -> dict[str, Any]:
    """A channel of an AutoML job."""
    source = {"S3DataType": "S3Prefix", "S3Uri": "s3://bucket/rows.csv"} | more.pop("source", {})
    return {"DataSource": {"S3DataSource": source}, **more}
