"""The operations of STS and IAM that clients call before SageMaker: who calls, and what its role may do.

Luthier has no roles, so every role exists and every action is allowed; what a key may do is in service/policy.py.
"""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from luthier.api.service import Service
from luthier.protocol.call import ROLE, Call

TRUST = {
    "Version": "2012-10-17",
    "Statement": [
        {"Effect": "Allow", "Principal": {"Service": "sagemaker.amazonaws.com"}, "Action": "sts:AssumeRole"},
    ],
}
SINCE = datetime(2026, 1, 1, tzinfo=UTC)


def get_caller_identity(call: Call, service: Service) -> dict[str, Any]:
    """Return an assumed-role session, because the SDKs' get_execution_role() accepts only that."""
    name = call.principal.arn.rsplit("/", 1)[-1] if "/" in call.principal.arn else call.account
    role = ROLE.rpartition("/")[2]
    return {
        "UserId": f"{_role_id(role)}:{name}",
        "Account": call.account,
        "Arn": f"arn:aws:sts::{call.account}:assumed-role/{role}/{name}",
    }


def get_role(call: Call, service: Service) -> dict[str, Any]:
    name = call.parameters["RoleName"]
    return {
        "Role": {
            "Path": "/",
            "RoleName": name,
            "RoleId": _role_id(name),
            "Arn": f"arn:aws:iam::{call.account}:role/{name}",
            "CreateDate": SINCE,
            "AssumeRolePolicyDocument": quote(json.dumps(TRUST), safe=""),
            "MaxSessionDuration": 3600,
        }
    }


def simulate_principal_policy(call: Call, service: Service) -> dict[str, Any]:
    request = call.parameters
    return {
        "EvaluationResults": [
            {"EvalActionName": action, "EvalResourceName": resource, "EvalDecision": "allowed", "MatchedStatements": []}
            for action in request["ActionNames"]
            for resource in request.get("ResourceArns") or ["*"]
        ],
        "IsTruncated": False,
    }


def _role_id(name: str) -> str:
    return f"AROA{hashlib.sha256(name.encode()).hexdigest()[:16].upper()}"


STS = {"GetCallerIdentity": get_caller_identity}
IAM = {"GetRole": get_role, "SimulatePrincipalPolicy": simulate_principal_policy}
