"""Endpoints: create, update, describe, list, delete. The supervisor runs their processes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from luthier.api import fields_without_effect, hosting, models
from luthier.api.description import drop_none, failure_reason, request_members
from luthier.api.paging import SortOrder, list_page
from luthier.api.service import Service
from luthier.errors import UserError
from luthier.jobs.progress import EndpointProgress, PendingUpdate, ServedVariant
from luthier.jobs.resource import Resource
from luthier.jobs.states import ENDPOINT, ENDPOINT_CONFIG, MODEL, IllegalMoveError
from luthier.jobs.store import GoneError
from luthier.protocol.call import Call
from luthier.protocol.errors import WireError

SERVED = ("InService", "Updating")


def create(call: Call, service: Service) -> dict[str, Any]:
    progress = EndpointProgress(variants=_variants(call, service))
    fields_without_effect.log_once(call, service)
    endpoint = hosting.create(call, service, ENDPOINT, call.parameters["EndpointName"], progress)
    return {"EndpointArn": endpoint.arn}


def update(call: Call, service: Service) -> dict[str, Any]:
    """Start an update; the present variants keep serving until the new ones are ready, or if those fail."""
    request = call.parameters
    endpoint = _in_service(call, service)
    number = endpoint.endpoint.updates + 1
    variants = [replace(variant, folder=f"{variant.name}.{number}") for variant in _variants(call, service)]
    excluded = {one["VariantPropertyType"] for one in request.get("ExcludeRetainedVariantProperties", ())}
    if request.get("RetainAllVariantProperties") and "DesiredWeight" not in excluded:
        weights = {variant.name: variant.weight for variant in endpoint.endpoint.variants}
        variants = [replace(variant, weight=weights.get(variant.name, variant.weight)) for variant in variants]
    pending = PendingUpdate(
        number=number, config=request["EndpointConfigName"], started=time.time(), variants=tuple(variants)
    )
    try:
        service.store.update(endpoint.id, "Updating", progress={"pending": pending, "updates": number, "failure": ""})
    except (IllegalMoveError, GoneError):
        raise _busy(endpoint, "leaving InService") from None
    fields_without_effect.log_once(call, service)
    return {"EndpointArn": endpoint.arn}


def update_weights(call: Call, service: Service) -> dict[str, Any]:
    """Change the variants' weights, from the next request on."""
    endpoint = _in_service(call, service)
    desired = {one["VariantName"]: one for one in call.parameters["DesiredWeightsAndCapacities"]}
    present_variants = {variant.name: variant for variant in endpoint.endpoint.variants}
    for name in desired.keys() - present_variants.keys():
        known = ", ".join(present_variants)
        raise UserError(f"DesiredWeightsAndCapacities: no variant {name}; expected some of {known}")
    variants = tuple(
        replace(
            variant, weight=desired.get(name, {}).get("DesiredWeight", variant.weight),
            instance_count=desired.get(name, {}).get("DesiredInstanceCount", variant.instance_count),
        )
        for name, variant in present_variants.items()
    )  # fmt: skip
    if not any(variant.weight for variant in variants):
        raise UserError("DesiredWeightsAndCapacities: every weight would be 0; give one of the variants a weight")
    service.store.update(endpoint.id, progress={"variants": variants})
    fields_without_effect.log_once(call, service)
    return {"EndpointArn": endpoint.arn}


def describe(call: Call, service: Service) -> dict[str, Any]:
    endpoint = hosting.find(call, service, ENDPOINT, call.parameters["EndpointName"])
    served = endpoint.status in SERVED
    return request_members(endpoint, "DescribeEndpoint") | drop_none({
        "EndpointName": endpoint.name,
        "EndpointArn": endpoint.arn,
        "EndpointStatus": endpoint.status,
        "ProductionVariants": [_summed(variant, endpoint, served) for variant in endpoint.endpoint.variants],
        "PendingDeploymentSummary": _pending(endpoint),
        "FailureReason": failure_reason(endpoint.endpoint.failure),
        "CreationTime": endpoint.created,
        "LastModifiedTime": endpoint.modified,
    })  # fmt: skip


def list_(call: Call, service: Service) -> dict[str, Any]:
    items, token = list_page(call, service, ENDPOINT, SortOrder(), _summary)
    return {"Endpoints": items} | token


def delete(call: Call, service: Service) -> dict[str, Any]:
    """Set the endpoint to Deleting; the supervisor ends its processes and removes it."""
    endpoint = hosting.find(call, service, ENDPOINT, call.parameters["EndpointName"])
    service.store.update(endpoint.id, "Deleting")
    return {}


def _in_service(call: Call, service: Service) -> Resource:
    """The endpoint; ValidationException if it cannot be changed now."""
    endpoint = hosting.find(call, service, ENDPOINT, call.parameters["EndpointName"])
    if endpoint.status != "InService":
        raise _busy(endpoint, f"in status {endpoint.status}")
    return endpoint


def _busy(endpoint: Resource, how: str) -> WireError:
    text = f'Cannot update endpoint "{endpoint.arn}" {how}; it must be InService.'
    return WireError("ValidationException", text)


def _variants(call: Call, service: Service) -> tuple[ServedVariant, ...]:
    """The variants of the call's endpoint config."""
    config = hosting.find(call, service, ENDPOINT_CONFIG, call.parameters["EndpointConfigName"])
    return tuple(
        _variant(variant, hosting.find(call, service, MODEL, variant["ModelName"]))
        for variant in config.request["ProductionVariants"]
    )


def _pending(endpoint: Resource) -> dict[str, Any] | None:
    """The PendingDeploymentSummary of the current update."""
    pending = endpoint.endpoint.pending
    if pending is None:
        return None
    return {
        "EndpointConfigName": pending.config,
        "ProductionVariants": [_summed(variant, endpoint, served=False) for variant in pending.variants],
        "StartTime": pending.started,
    }


def _variant(variant: Mapping[str, Any], model: Resource) -> ServedVariant:
    container = models.container(model)
    source = container.get("ModelDataSource", {}).get("S3DataSource", {})
    return ServedVariant(
        name=variant["VariantName"],
        model=model.name,
        image=container.get("Image", ""),
        artifact=container.get("ModelDataUrl") or source.get("S3Uri", ""),
        environment=container.get("Environment", {}),
        weight=variant["InitialVariantWeight"],
        instance_count=variant.get("InitialInstanceCount", 1),
    )


def _summed(variant: ServedVariant, endpoint: Resource, served: bool) -> dict[str, Any]:
    image = variant.image
    images = [{"SpecifiedImage": image, "ResolvedImage": image, "ResolutionTime": endpoint.created}]
    return drop_none({
        "VariantName": variant.name,
        "DeployedImages": images if image else None,
        "CurrentWeight": variant.weight,
        "DesiredWeight": variant.weight,
        "CurrentInstanceCount": variant.instance_count if served else 0,
        "DesiredInstanceCount": variant.instance_count,
    })  # fmt: skip


def _summary(endpoint: Resource) -> dict[str, Any]:
    return {
        "EndpointName": endpoint.name,
        "EndpointArn": endpoint.arn,
        "EndpointStatus": endpoint.status,
        "CreationTime": endpoint.created,
        "LastModifiedTime": endpoint.modified,
    }


OPERATIONS = {
    "CreateEndpoint": create,
    "UpdateEndpoint": update,
    "UpdateEndpointWeightsAndCapacities": update_weights,
    "DescribeEndpoint": describe,
    "ListEndpoints": list_,
    "DeleteEndpoint": delete,
}
