"""The public hub as SDK v3 reads it."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from api.wire_client import WireClient

from luthier.catalog.entry import entries
from luthier.catalog.jumpstart import jumpstart_ids

HUB = {"HubName": "SageMakerPublicHub", "HubContentType": "Model"}
LLAMA = "meta-textgeneration-llama-2-7b"


def document(wire: WireClient, name: str, region: str = "us-east-1") -> dict[str, Any]:
    told = wire.client(region=region).describe_hub_content(**HUB, HubContentName=name)
    found: dict[str, Any] = json.loads(told["HubContentDocument"])
    return found


def test_a_content_has_what_the_sdk_reads(wire: WireClient) -> None:
    told = document(wire, LLAMA, "eu-west-1")
    assert told["ModelTypes"] == ["OPEN_WEIGHTS"]
    assert (told["GatedBucket"], told["TrainingSupported"]) == (True, True)
    assert told["TrainingEcrUri"] == "763104351884.dkr.ecr.eu-west-1.amazonaws.com/luthier-training:1"
    prefix = f"s3://jumpstart-private-cache-prod-eu-west-1/luthier/{LLAMA}/5.0.0"
    assert told["TrainingArtifactUri"] == f"{prefix}/train/"
    parameters = {found["Name"]: found for found in told["Hyperparameters"]}
    assert parameters["epoch"] == {
        "Name": "epoch", "Type": "int", "Scope": "algorithm", "Default": 5, "Min": 1, "Max": 1000,
    }  # fmt: skip
    assert parameters["lora_dropout"]["Max"] == 1
    assert "$" not in json.dumps(told["TrainingInstanceTypeVariants"])


def test_every_entry_is_a_content(wire: WireClient) -> None:
    client = wire.client()
    found: list[dict[str, Any]] = []
    more: dict[str, str] = {}
    while True:
        answer = client.list_hub_contents(**HUB, MaxResults=30, **more)
        found += answer["HubContentSummaries"]
        if "NextToken" not in answer:
            break
        more = {"NextToken": answer["NextToken"]}
    names = [content["HubContentName"] for content in found]
    assert len(names) == len({identity for entry in entries() for identity in jumpstart_ids(entry)})
    assert {"redpajama-incite-instruct-3b", LLAMA, "luthier-tiny"} <= set(names)
    assert names == sorted(names)
    for name in names:
        assert document(wire, name)["Url"].startswith("https://")
    llamas = client.list_hub_contents(**HUB, NameContains="llama-2", SortOrder="Descending")["HubContentSummaries"]
    assert all("llama-2" in content["HubContentName"] for content in llamas)
    assert llamas[0]["HubContentName"] > llamas[-1]["HubContentName"]


def test_a_version_may_be_named(wire: WireClient) -> None:
    told = wire.client().describe_hub_content(**HUB, HubContentName=LLAMA, HubContentVersion="2.0.0")
    assert told["HubContentVersion"] == "2.0.0"
    assert told["HubContentArn"].endswith(f"hub-content/SageMakerPublicHub/Model/{LLAMA}/2.0.0")


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (
            HUB | {"HubContentName": f"{LLAMA}x"},
            f"Could not find Model {LLAMA}x in hub SageMakerPublicHub; did you mean '{LLAMA}'?.",
        ),
        (
            HUB | {"HubContentName": LLAMA, "HubContentType": "Notebook"},
            f"Could not find Notebook {LLAMA} in hub SageMakerPublicHub.",
        ),
        (
            HUB | {"HubContentName": LLAMA, "HubContentVersion": "9.9.9"},
            f"Could not find version 9.9.9 of {LLAMA} in hub SageMakerPublicHub; it has 1.0.0, 2.0.0, 3.0.0, 4.0.0, "
            "5.0.0.",
        ),
        (
            HUB | {"HubContentName": LLAMA, "HubName": "mine"},
            "Could not find hub mine; there is SageMakerPublicHub only.",
        ),
    ],
)
def test_what_is_not_there(wire: WireClient, parameters: dict[str, str], message: str) -> None:
    assert wire.refusal(wire.client().describe_hub_content, **parameters) == ("ResourceNotFound", message)


def test_there_is_one_hub(wire: WireClient) -> None:
    client = wire.client()
    assert client.describe_hub(HubName="SageMakerPublicHub")["HubStatus"] == "InService"
    assert [hub["HubName"] for hub in client.list_hubs()["HubSummaries"]] == ["SageMakerPublicHub"]
    assert client.list_hubs(CreationTimeBefore=datetime(2020, 1, 1, tzinfo=UTC))["HubSummaries"] == []
    later = datetime(2030, 1, 1, tzinfo=UTC)
    assert client.list_hub_contents(**HUB, CreationTimeAfter=later)["HubContentSummaries"] == []
    assert wire.refusal(client.describe_hub, HubName="other")[0] == "ResourceNotFound"
