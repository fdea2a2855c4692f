"""Models, endpoint configs and endpoints: what is kept, what is described, and AWS's texts that clients match on."""

from __future__ import annotations

from typing import Any

import pytest
from api.wire_client import ACCOUNT, OWNER, ROLE, WireClient

from luthier.jobs.progress import ModelProgress, ServedVariant

IMAGE = "763104351884.dkr.ecr.us-east-1.amazonaws.com/any:1"
CONTAINER = {"Image": IMAGE, "ModelDataUrl": "s3://bucket/model.tar.gz", "Environment": {"HF_TASK": "text-generation"}}
PRIVATE = "s3://jumpstart-private-cache-prod-us-east-1/luthier/meta-textgeneration-llama-2-7b/5.0.0"
ARN = f"arn:aws:sagemaker:us-east-1:{ACCOUNT}"


def model(name: str = "m", **more: Any) -> dict[str, Any]:
    return {"ModelName": name, "PrimaryContainer": CONTAINER, "ExecutionRoleArn": ROLE} | more


def variant(name: str = "AllTraffic", model_name: str = "m", **more: Any) -> dict[str, Any]:
    made = {"VariantName": name, "ModelName": model_name, "InitialInstanceCount": 1, "InstanceType": "ml.g5.xlarge"}
    return made | more


def config(name: str = "c", variants: list[dict[str, Any]] | None = None, **more: Any) -> dict[str, Any]:
    return {"EndpointConfigName": name, "ProductionVariants": variants or [variant()]} | more


@pytest.fixture
def client(wire: WireClient) -> Any:
    made = wire.client()
    made.create_model(**model())
    made.create_endpoint_config(**config())
    return made


def test_a_model_is_described_as_it_was_made(client: Any) -> None:
    source = {"S3DataSource": {"S3Uri": "s3://bucket/model/", "S3DataType": "S3Prefix", "CompressionType": "None"}}
    container = {"Image": IMAGE, "ModelDataSource": source}
    request = model("Other", PrimaryContainer=container, Tags=[{"Key": "a", "Value": "b"}])
    assert client.create_model(**request)["ModelArn"] == f"{ARN}:model/other"
    told = client.describe_model(ModelName="Other")
    assert {name: told[name] for name in request if name != "Tags"} == {
        name: value for name, value in request.items() if name != "Tags"
    }
    assert client.list_tags(ResourceArn=told["ModelArn"])["Tags"] == [{"Key": "a", "Value": "b"}]
    client.delete_model(ModelName="Other")
    assert [found["ModelName"] for found in client.list_models()["Models"]] == ["m"]


def test_an_artifact_of_the_jumpstart_cache_that_is_unknown_is_refused_at_once(client: Any, wire: WireClient) -> None:
    for key in ("None", "luthier/no-such-model/1.0.0/infer/"):
        uri = f"s3://jumpstart-cache-prod-us-east-1/{key}"
        code, message = wire.refusal(
            client.create_model, **model("x", PrimaryContainer={"Image": IMAGE, "ModelDataUrl": uri})
        )
        assert code == "ValidationException"
        assert f"could not find model data at {uri}" in message


def test_a_config_is_described_with_its_default_weight(client: Any) -> None:
    told = client.describe_endpoint_config(EndpointConfigName="c")
    assert told["ProductionVariants"] == [variant(InitialVariantWeight=1.0)]
    assert told["EndpointConfigArn"] == f"{ARN}:endpoint-config/c"
    client.delete_endpoint_config(EndpointConfigName="c")
    assert client.list_endpoint_configs()["EndpointConfigs"] == []


def test_an_endpoint_goes_its_way(wire: WireClient, client: Any) -> None:
    client.create_model(**model("n"))
    client.create_endpoint_config(**config("two", [
        variant("a", InitialVariantWeight=3.0, InitialInstanceCount=2), variant("b", "n")]))  # fmt: skip
    assert client.create_endpoint(EndpointName="E", EndpointConfigName="two")["EndpointArn"] == f"{ARN}:endpoint/e"
    told = client.describe_endpoint(EndpointName="E")
    assert (told["EndpointStatus"], told["EndpointConfigName"]) == ("Creating", "two")
    assert [found["CurrentInstanceCount"] for found in told["ProductionVariants"]] == [0, 0]
    made = wire.store.find("endpoint", OWNER, "E")
    assert made is not None
    assert made.open
    assert made.endpoint.variants[0] == ServedVariant(
        name="a", model="m", image=IMAGE, artifact="s3://bucket/model.tar.gz",
        environment={"HF_TASK": "text-generation"}, weight=3.0, instance_count=2,
    )  # fmt: skip
    for name in ("two", "c"):
        client.delete_endpoint_config(EndpointConfigName=name)
    client.delete_model(ModelName="m")
    wire.store.update(made.id, "InService")
    told = client.describe_endpoint(EndpointName="E")
    assert told["EndpointStatus"] == "InService"
    first = told["ProductionVariants"][0]
    assert (first["CurrentWeight"], first["DesiredWeight"]) == (3.0, 3.0)
    assert (first["CurrentInstanceCount"], first["DesiredInstanceCount"]) == (2, 2)
    assert first["DeployedImages"][0]["SpecifiedImage"] == IMAGE
    client.delete_endpoint(EndpointName="E")
    assert client.describe_endpoint(EndpointName="E")["EndpointStatus"] == "Deleting"
    client.delete_endpoint(EndpointName="E")
    assert [found["EndpointStatus"] for found in client.list_endpoints()["Endpoints"]] == ["Deleting"]


def test_an_update_is_noted_and_shown_until_it_is_done(wire: WireClient, client: Any) -> None:
    client.create_model(**model("n", PrimaryContainer={"Image": IMAGE, "ModelDataUrl": "s3://bucket/other.tar.gz"}))
    client.create_endpoint_config(**config("second", [variant("a", "n", InitialVariantWeight=5.0)]))
    client.create_endpoint(EndpointName="e", EndpointConfigName="c")
    asked = {"EndpointName": "e", "EndpointConfigName": "second"}
    code, text = wire.refusal(client.update_endpoint, **asked)
    assert (code, "in status Creating; it must be InService" in text) == ("ValidationException", True)
    made = wire.store.find("endpoint", OWNER, "e")
    assert made is not None
    wire.store.update(made.id, "InService", progress={"failure": "the update before"})
    assert "Could not find endpoint config" in wire.refusal(client.update_endpoint, **asked | {
        "EndpointConfigName": "x"})[1]  # fmt: skip
    assert client.update_endpoint(**asked)["EndpointArn"] == f"{ARN}:endpoint/e"
    told = client.describe_endpoint(EndpointName="e")
    assert (told["EndpointStatus"], told["EndpointConfigName"]) == ("Updating", "c")
    assert "FailureReason" not in told
    assert told["ProductionVariants"][0]["CurrentInstanceCount"] == 1
    summary = told["PendingDeploymentSummary"]
    assert summary["EndpointConfigName"] == "second"
    assert [(one["VariantName"], one["DesiredWeight"]) for one in summary["ProductionVariants"]] == [("a", 5.0)]
    updating = wire.store.find("endpoint", OWNER, "e")
    assert updating is not None
    assert updating.endpoint.pending is not None
    (pending,) = updating.endpoint.pending.variants
    assert (pending.artifact, pending.folder) == ("s3://bucket/other.tar.gz", "a.1")
    assert wire.refusal(client.update_endpoint, **asked)[0] == "ValidationException"


@pytest.mark.parametrize(
    ("more", "weight"),
    [({}, 5.0), ({"RetainAllVariantProperties": True}, 1.0),
     ({"RetainAllVariantProperties": True,
       "ExcludeRetainedVariantProperties": [{"VariantPropertyType": "DesiredWeight"}]}, 5.0)],
)  # fmt: skip
def test_an_update_keeps_weights_where_it_is_asked_to(
    wire: WireClient, client: Any, more: dict[str, Any], weight: float
) -> None:  # fmt: skip
    name = client.describe_endpoint_config(EndpointConfigName="c")["ProductionVariants"][0]["VariantName"]
    client.create_endpoint_config(**config("second", [variant(name, InitialVariantWeight=5.0)]))
    client.create_endpoint(EndpointName="e", EndpointConfigName="c")
    made = wire.store.find("endpoint", OWNER, "e")
    assert made is not None
    wire.store.update(made.id, "InService")
    client.update_endpoint(EndpointName="e", EndpointConfigName="second", **more)
    summary = client.describe_endpoint(EndpointName="e")["PendingDeploymentSummary"]
    assert summary["ProductionVariants"][0]["DesiredWeight"] == weight


def test_weights_are_changed_at_once(wire: WireClient, client: Any) -> None:
    client.create_endpoint_config(**config("two", [variant("a", "m"), variant("b", "m")]))
    client.create_endpoint(EndpointName="e", EndpointConfigName="two")
    wanted = [{"VariantName": "b", "DesiredWeight": 4.0, "DesiredInstanceCount": 3}]
    change = client.update_endpoint_weights_and_capacities
    asked = {"EndpointName": "e", "DesiredWeightsAndCapacities": wanted}
    assert "in status Creating" in wire.refusal(change, **asked)[1]
    made = wire.store.find("endpoint", OWNER, "e")
    assert made is not None
    wire.store.update(made.id, "InService")
    assert change(**asked)["EndpointArn"] == f"{ARN}:endpoint/e"
    told = client.describe_endpoint(EndpointName="e")
    assert told["EndpointStatus"] == "InService"
    weights = [(one["CurrentWeight"], one["DesiredInstanceCount"]) for one in told["ProductionVariants"]]
    assert weights == [(1.0, 1), (4.0, 3)]
    for refused, words in (
        ([{"VariantName": "x", "DesiredWeight": 1.0}], "no variant x; expected some of a, b"),
        ([{"VariantName": name, "DesiredWeight": 0.0} for name in "ab"], "every weight would be 0"),
    ):
        assert words in wire.refusal(change, EndpointName="e", DesiredWeightsAndCapacities=refused)[1]


def test_a_failed_endpoint_says_why(wire: WireClient, client: Any) -> None:
    client.create_endpoint(EndpointName="e", EndpointConfigName="c")
    made = wire.store.find("endpoint", OWNER, "e")
    assert made is not None
    wire.store.update(made.id, "Failed", progress={"failure": "no artifact at s3://bucket/model.tar.gz"})
    assert client.describe_endpoint(EndpointName="e")["FailureReason"] == "no artifact at s3://bucket/model.tar.gz"


@pytest.mark.parametrize(
    ("operation", "parameters", "message"),
    [
        ("describe_model", {"ModelName": "X"}, f'Could not find model "{ARN}:model/x".'),
        ("delete_model", {"ModelName": "x"}, f'Could not find model "{ARN}:model/x".'),
        ("describe_endpoint_config", {"EndpointConfigName": "x"},
         f'Could not find endpoint configuration "{ARN}:endpoint-config/x".'),
        ("delete_endpoint_config", {"EndpointConfigName": "x"},
         f'Could not find endpoint configuration "{ARN}:endpoint-config/x".'),
        ("describe_endpoint", {"EndpointName": "x"}, f'Could not find endpoint "{ARN}:endpoint/x".'),
        ("delete_endpoint", {"EndpointName": "x"}, f'Could not find endpoint "{ARN}:endpoint/x".'),
        ("create_endpoint", {"EndpointName": "e", "EndpointConfigName": "x"},
         f'Could not find endpoint configuration "{ARN}:endpoint-config/x".'),
        ("create_endpoint_config", config("d", [variant(model_name="x")]), f'Could not find model "{ARN}:model/x".'),
        ("create_model", model(), f'Cannot create already existing model "{ARN}:model/m".'),
        ("create_endpoint_config", config(),
         f'Cannot create already existing endpoint configuration "{ARN}:endpoint-config/c".'),
        ("create_model", {"ModelName": "x"}, "no container is given; expected PrimaryContainer"),
        ("create_model", model("x", Containers=[CONTAINER]), "PrimaryContainer and Containers exclude each other"),
        ("create_model", {"ModelName": "x", "Containers": [CONTAINER, CONTAINER]},
         "Containers holds 2; an inference pipeline is not supported: expected one container"),
        ("create_model", model("x", PrimaryContainer={"ModelPackageName": "p"}),
         "PrimaryContainer.ModelPackageName is not supported; expected ModelDataUrl or ModelDataSource"),
        ("create_model", model("x", PrimaryContainer=CONTAINER | {"Mode": "MultiModel"}),
         "PrimaryContainer.Mode MultiModel is not supported; expected SingleModel"),
        ("create_model", model("x", PrimaryContainer={"ModelDataUrl": "https://host/m.tar.gz"}),
         "PrimaryContainer: https://host/m.tar.gz: expected s3://BUCKET/KEY of a model's artifact"),
        ("create_model", model("x", PrimaryContainer=CONTAINER | {"ModelDataSource": {"S3DataSource": {
            "S3Uri": "s3://bucket/x", "S3DataType": "S3Object", "CompressionType": "Gzip"}}}),
         "PrimaryContainer: ModelDataUrl and ModelDataSource exclude each other; leave one of them out"),
        ("create_endpoint_config", config("d", [variant(), variant()]),
         "ProductionVariants: 2 variants are named AllTraffic; expected a name of its own for each"),
        ("create_endpoint_config", config("d", [variant(InitialVariantWeight=0.0)]),
         "ProductionVariants: every InitialVariantWeight is 0, so none would be called"),
        ("create_endpoint_config", config("d", [variant(InitialVariantWeight=1e9)]),
         "ProductionVariants, AllTraffic: InitialVariantWeight is above 1,000,000"),
        ("create_model", model("x", PrimaryContainer={"ModelDataUrl": f"{PRIVATE}/infer/"}),
         "llama-2-7b is licensed under Llama 2 Community License, which you must accept first: read "
         "https://ai.meta.com/llama/license/, then set ModelDataSource.S3DataSource.ModelAccessConfig.AcceptEula"),
        ("create_endpoint_config", config("d", [{"VariantName": "v"}]),
         "ProductionVariants, v: no ModelName is given; inference components are not supported"),
        ("create_endpoint_config", config("d", AsyncInferenceConfig={"OutputConfig": {"S3OutputPath": "s3://b/x"}}),
         "AsyncInferenceConfig is not supported; leave it out"),
        ("create_endpoint_config", config("d", KmsKeyId="key"), "KmsKeyId=key: Luthier does not encrypt"),
    ],
)  # fmt: skip
def test_refusals(wire: WireClient, client: Any, operation: str, parameters: dict[str, Any], message: str) -> None:
    code, told = wire.refusal(getattr(client, operation), **parameters)
    assert code == "ValidationException"
    assert told.startswith(message)


def test_a_gated_base_model_is_served_once_its_licence_is_accepted(wire: WireClient, client: Any) -> None:
    source = {"S3Uri": f"{PRIVATE}/infer/", "S3DataType": "S3Prefix", "CompressionType": "None",
              "ModelAccessConfig": {"AcceptEula": True}}  # fmt: skip
    client.create_model(**model("gated", PrimaryContainer={"ModelDataSource": {"S3DataSource": source}}))
    made = wire.store.find("model", OWNER, "gated")
    assert made is not None
    assert isinstance(made.progress, ModelProgress)
    assert made.progress.eula is not None
    assert made.progress.eula["licence"] == "Llama 2 Community License"


def test_an_endpoint_s_name_is_taken_once(wire: WireClient, client: Any) -> None:
    client.create_endpoint(EndpointName="e", EndpointConfigName="c")
    refused = wire.refusal(client.create_endpoint, EndpointName="e", EndpointConfigName="c")
    assert refused == ("ValidationException", f'Cannot create already existing endpoint "{ARN}:endpoint/e".')
