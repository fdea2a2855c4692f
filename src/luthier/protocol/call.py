"""One call of an API operation, parsed and validated, by a caller who is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from luthier.protocol.message import Request

ACCOUNT = "123456789012"  # everybody's, until several accounts exist
REGION = "us-east-1"  # of a request that names none
ROLE = f"arn:aws:iam::{ACCOUNT}:role/LuthierExecutionRole"  # the execution role that clients are given


@dataclass(frozen=True, slots=True)
class Principal:
    """Who calls: the account, and the ARN of a user in it."""

    account: str = ACCOUNT
    arn: str = f"arn:aws:iam::{ACCOUNT}:root"


@dataclass(frozen=True, slots=True)
class Call:
    """`service` is botocore's name (sagemaker, sagemaker-runtime, logs, sts, iam, s3); `parameters` its input shape."""

    service: str
    operation: str
    parameters: dict[str, Any]
    request: Request
    request_id: str
    region: str = REGION
    principal: Principal = Principal()

    @property
    def account(self) -> str:
        return self.principal.account

    def arn(self, kind: str, name: str) -> str:
        """The ARN of a SageMaker resource; names are in lower case there."""
        return f"arn:aws:sagemaker:{self.region}:{self.account}:{kind}/{name.lower()}"
