"""One call of an API operation, parsed, validated and authenticated; the default account, region and role."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from luthier.protocol.message import Request
from luthier.rights import EVERYTHING, Rights

ACCOUNT = "123456789012"  # every caller's, until several accounts exist
GLOBAL_REGION = "us-east-1"  # of AWS's global endpoints, and so of a request that names none; S3's classic region
ROLE = f"arn:aws:iam::{ACCOUNT}:role/LuthierExecutionRole"  # the execution role that clients are told to use


@dataclass(frozen=True, slots=True)
class Principal:
    """The authenticated caller: an account, the ARN of a user in it, its access key's id (if any) and rights."""

    account: str = ACCOUNT
    arn: str = f"arn:aws:iam::{ACCOUNT}:root"
    key: str = ""
    rights: Rights = EVERYTHING


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """`service` is botocore's name (sagemaker, sagemaker-runtime, logs, sts, iam, s3).

    `parameters` are the members of the operation's input shape.
    """

    service: str
    operation: str
    parameters: dict[str, Any]
    request: Request
    request_id: str
    region: str = GLOBAL_REGION
    principal: Principal = Principal()

    @property
    def account(self) -> str:
        return self.principal.account

    @property
    def creator(self) -> tuple[str, str, str]:
        """The owner of a resource that this call creates: account, region, and the id of the access key."""
        return (self.account, self.region, self.principal.key)

    def arn(self, kind: str, name: str) -> str:
        """The ARN of a SageMaker resource."""
        return sagemaker_arn(self.region, self.account, kind, name)


def sagemaker_arn(region: str, account: str, kind: str, name: str) -> str:
    """The ARN of a SageMaker resource; names are in lower case there."""
    return f"arn:aws:sagemaker:{region}:{account}:{kind}/{name.lower()}"
