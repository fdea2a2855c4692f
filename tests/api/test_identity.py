"""STS and IAM as the SDKs ask them."""

from __future__ import annotations

from api.wire_client import ACCOUNT, WireClient

from luthier.protocol.call import Principal


def test_the_caller_is_told_who_it_is(wire: WireClient) -> None:
    wire.principal = Principal(ACCOUNT, f"arn:aws:iam::{ACCOUNT}:user/ada")
    told = wire.client("sts").get_caller_identity()
    assert told["Account"] == ACCOUNT
    assert told["Arn"] == f"arn:aws:sts::{ACCOUNT}:assumed-role/LuthierExecutionRole/ada"
    role = wire.client("iam").get_role(RoleName="LuthierExecutionRole")["Role"]
    assert told["UserId"] == f"{role['RoleId']}:ada"


def test_every_role_is_there_and_trusts_sagemaker(wire: WireClient) -> None:
    role = wire.client("iam").get_role(RoleName="SageMakerRole")["Role"]
    assert role["Arn"] == f"arn:aws:iam::{ACCOUNT}:role/SageMakerRole"
    assert role["AssumeRolePolicyDocument"]["Statement"][0]["Principal"] == {"Service": "sagemaker.amazonaws.com"}
    assert wire.client("iam").get_role(RoleName="SageMakerRole")["Role"]["RoleId"] == role["RoleId"]


def test_every_action_is_allowed(wire: WireClient) -> None:
    actions = ["s3:GetObject", "sagemaker:CreateModel"]
    found = wire.client("iam").simulate_principal_policy(
        PolicySourceArn=f"arn:aws:iam::{ACCOUNT}:role/r", ActionNames=actions
    )["EvaluationResults"]
    assert [(result["EvalActionName"], result["EvalDecision"]) for result in found] == [
        (action, "allowed") for action in actions
    ]
