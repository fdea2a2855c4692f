"""ModelDeployConfig: the model, endpoint configuration and endpoint that an AutoML job makes of its candidate.

Each is made under a name that follows from the job, once: after a kill what is there and ours is gone on with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from luthier.jobs import trial
from luthier.jobs.store import Resource, Store, TakenError
from luthier.supervisor import collect

VARIANT = "AllTraffic"
_FAILED = frozenset({"Failed", "Deleting"})


@dataclass(frozen=True, slots=True)
class Deployment:
    """How far it is: `ready` when the endpoint answers, or `failure`, a sentence."""

    endpoint: str
    ready: bool = False
    failure: str = ""


def endpoint_name(resource: Resource) -> str:
    """The endpoint's name: as asked for, or the job's own with a part that no other job has."""
    asked = resource.request.get("ModelDeployConfig", {}).get("EndpointName")
    return str(asked) if asked else f"{resource.name}-{resource.id[:8]}"


def deploy(store: Store, resource: Resource) -> Deployment:
    """Make what is not made yet, and say how far the endpoint is. Does not wait."""
    name = endpoint_name(resource)
    made = (resource.account, resource.region)
    found = store.find("endpoint", made, name)
    if found is None or found.facts.get("made_by") != resource.id:
        try:
            for kind, its_name, request in _parts(resource, name):
                _make(store, resource, kind, its_name, request)
        except TakenError as taken:
            return Deployment(name, failure=f"{taken}; its name is another's")
        found = store.find("endpoint", made, name)
    if found is None or found.status in _FAILED:
        reason = found.facts.get("failure") if found else "it was deleted"
        return Deployment(name, failure=f"endpoint {name}: {reason or 'it failed'}")
    return Deployment(name, ready=found.status == "InService")


def _parts(resource: Resource, endpoint: str) -> list[tuple[str, str, Mapping[str, Any]]]:
    """Kind, name and request of the three resources, as a caller would have asked for them."""
    model = trial.candidate_name(resource)
    variant = {
        "VariantName": VARIANT, "ModelName": model, "InitialInstanceCount": 1, "InstanceType": trial.INSTANCE_TYPE,
        "InitialVariantWeight": 1.0,
    }  # fmt: skip
    containers = {"ModelName": model, "PrimaryContainer": collect.container(resource),
                  "ExecutionRoleArn": resource.request["RoleArn"]}  # fmt: skip
    return [
        ("model", model, containers),
        ("endpoint-config", endpoint, {"EndpointConfigName": endpoint, "ProductionVariants": [variant]}),
        ("endpoint", endpoint, {"EndpointName": endpoint, "EndpointConfigName": endpoint}),
    ]


def _facts(resource: Resource, kind: str) -> dict[str, Any]:
    """What CreateEndpoint would have noted of the model, beside whose this is."""
    made: dict[str, Any] = {"made_by": resource.id}
    if kind != "endpoint":
        return made
    container = collect.container(resource)
    variant = {
        "VariantName": VARIANT, "ModelName": trial.candidate_name(resource), "Image": container["Image"],
        "ModelData": container["ModelDataUrl"], "Environment": container["Environment"], "Weight": 1.0,
        "InstanceCount": 1,
    }  # fmt: skip
    return made | {"variants": [variant]}


def _make(store: Store, resource: Resource, kind: str, name: str, request: Mapping[str, Any]) -> None:
    owner = (resource.account, resource.region)
    try:
        store.create(kind, owner, name, request, facts=_facts(resource, kind))
    except TakenError:
        found = store.find(kind, owner, name)
        if found is None or found.facts.get("made_by") != resource.id:
            raise
