"""Lists: 250 resources in pages, every filter, every order, and tokens that are not taken."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from api.wire_client import OWNER, WireClient

from luthier.jobs.progress import initial_progress, progress_to_json
from luthier.jobs.schema import resources
from luthier.jobs.states import FIRST

LISTS = [
    ("training-job", "list_training_jobs", "TrainingJobSummaries", "TrainingJobName"),
    ("automl-job", "list_auto_ml_jobs", "AutoMLJobSummaries", "AutoMLJobName"),
    ("model", "list_models", "Models", "ModelName"),
    ("endpoint-config", "list_endpoint_configs", "EndpointConfigs", "EndpointConfigName"),
    ("endpoint", "list_endpoints", "Endpoints", "EndpointName"),
]


def fill(wire: WireClient, kind: str, count: int) -> None:
    """Resources n-000, n-001, ..., written at once; two of each second, changed a second apart."""
    row = {"kind": kind, "account": OWNER[0], "region": OWNER[1], "request": {}, "status": FIRST.get(kind, ""),
           "secondary": "Starting", "progress": progress_to_json(initial_progress(kind)), "revision": 0,
           "open": False}  # fmt: skip
    rows = [
        row | {"id": f"{number:032d}", "name": f"n-{number:03d}", "key": f"n-{number:03d}",
               "created": 1000.0 + number // 2, "modified": 2000.0 + number}
        for number in range(count)
    ]  # fmt: skip
    with wire.store.write() as connection:
        connection.execute(resources.insert(), rows)


def pages(call: Any, items: str, name: str, **given: Any) -> list[list[str]]:
    found, token = [], None
    while True:
        answer = call(**given, **({"NextToken": token} if token else {}))
        found.append([item[name] for item in answer[items]])
        token = answer.get("NextToken")
        if not token:
            return found


@pytest.mark.parametrize(("kind", "operation", "items", "name"), LISTS)
@pytest.mark.parametrize("sort", ["Name", "CreationTime"])
def test_all_of_250_are_listed_once_in_order(
    wire: WireClient, kind: str, operation: str, items: str, name: str, sort: str
) -> None:
    fill(wire, kind, 250)
    call = getattr(wire.client(), operation)
    wanted = [f"n-{number:03d}" for number in range(250)]
    for order in ("Ascending", "Descending"):
        found = pages(call, items, name, SortBy=sort, SortOrder=order, MaxResults=100)
        assert [len(page) for page in found] == [100, 100, 50]
        flat = [entry for page in found for entry in page]
        assert sorted(flat) == wanted
        if sort == "Name":
            assert flat == (wanted if order == "Ascending" else wanted[::-1])
        assert flat[0] in (wanted[:2] if order == "Ascending" else wanted[-2:])


@pytest.mark.parametrize(("kind", "operation", "items", "name"), LISTS)
def test_ten_are_listed_when_it_is_not_said(wire: WireClient, kind: str, operation: str, items: str, name: str) -> None:
    fill(wire, kind, 11)
    found = pages(getattr(wire.client(), operation), items, name)
    assert [len(page) for page in found] == [10, 1]
    first = {"list_training_jobs": "n-000"}.get(operation, "n-010")  # AWS lists training jobs the oldest first
    assert found[0][0] in (first, "n-001")


def test_filters(wire: WireClient) -> None:
    fill(wire, "training-job", 20)
    wire.store.update(f"{7:032d}", "Completed", progress={"ended": 1.0})
    call = wire.client().list_training_jobs

    def names(**given: Any) -> list[str]:
        return [job["TrainingJobName"] for job in call(MaxResults=100, SortBy="Name", **given)["TrainingJobSummaries"]]

    assert names(NameContains="-01") == [f"n-01{digit}" for digit in range(10)]
    assert names(StatusEquals="Completed") == ["n-007"]
    assert names(StatusEquals="Deleting") == []
    assert names(CreationTimeAfter=datetime.fromtimestamp(1009, UTC), NameContains="n") == ["n-018", "n-019"]
    assert names(CreationTimeBefore=datetime.fromtimestamp(1000, UTC)) == ["n-000", "n-001"]
    assert names(LastModifiedTimeAfter=datetime.fromtimestamp(2018, UTC)) == ["n-007", "n-018", "n-019"]
    assert names(LastModifiedTimeBefore=datetime.fromtimestamp(2001, UTC)) == ["n-000", "n-001"]
    assert names(WarmPoolStatusEquals="Available") == []
    status = call(SortBy="Status", SortOrder="Ascending")["TrainingJobSummaries"][0]
    assert (status["TrainingJobName"], status["TrainingJobStatus"]) == ("n-007", "Completed")


def test_pages_stay_right_while_others_come_and_go(wire: WireClient) -> None:
    fill(wire, "model", 20)
    client = wire.client()
    first = client.list_models(SortBy="Name", SortOrder="Ascending", MaxResults=10)
    for name in ("n-000", "n-010"):
        client.delete_model(ModelName=name)
    second = client.list_models(SortBy="Name", SortOrder="Ascending", MaxResults=10, NextToken=first["NextToken"])
    assert [model["ModelName"] for model in second["Models"]] == [f"n-0{number}" for number in range(11, 20)]


def tampered(token: str) -> str:
    place = json.loads(base64.urlsafe_b64decode(token))
    return base64.urlsafe_b64encode(json.dumps(["n-000", *place[1:]]).encode()).decode()


@pytest.mark.parametrize("token", ["x", "%%%", "e30=", "bnVsbA==", "WzEsMl0=", "W1tdLCJhIiwiYiJd", "ü"])
def test_tokens_that_are_none(wire: WireClient, token: str) -> None:
    refused = wire.refusal(wire.client().list_training_jobs, NextToken=token)
    assert refused == ("ValidationException", "Invalid pagination token")


def test_a_token_belongs_to_its_list(wire: WireClient) -> None:
    fill(wire, "training-job", 11)
    client = wire.client()
    token = client.list_training_jobs(SortBy="Name")["NextToken"]
    invalid = ("ValidationException", "Invalid pagination token")
    assert wire.refusal(client.list_training_jobs, SortBy="Name", NextToken=tampered(token)) == invalid
    assert wire.refusal(client.list_training_jobs, NextToken=token) == invalid
    assert wire.refusal(client.list_training_jobs, SortBy="Name", NameContains="n", NextToken=token) == invalid
    assert wire.refusal(client.list_auto_ml_jobs, SortBy="Name", NextToken=token) == invalid
    other = wire.client(region="eu-west-1").list_training_jobs
    assert wire.refusal(other, SortBy="Name", NextToken=token) == invalid
    assert len(client.list_training_jobs(SortBy="Name", MaxResults=5, NextToken=token)["TrainingJobSummaries"]) == 1
