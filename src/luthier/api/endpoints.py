"""Endpoints: create, update, describe, list, delete. The supervisor starts and ends what serves them.

Facts of an endpoint, made here and gone on with by the supervisor:

    variants    [{"VariantName", "ModelName", "Image", "ModelData" (s3:// of the artifact, or ""), "Environment",
                  "Weight", "InstanceCount", "Folder" (below the endpoint's; none: the variant's name), and, once it
                  is served, "address"}]
    address     of the one process, where the variants have none of their own
    failure     why it is Failed, or why its last update was given up
    updates     how many updates were asked for
    pending     {"number", "EndpointConfigName", "started", "variants"} of the update at work, else None
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from luthier.api import hosting, models, without_meaning
from luthier.api.description import described, present, reason
from luthier.api.hosting import CONFIG, ENDPOINT, MODEL
from luthier.api.paging import SortOrder, listed
from luthier.api.service import Service
from luthier.errors import UserError
from luthier.jobs.states import IllegalMoveError
from luthier.jobs.store import GoneError, Resource
from luthier.protocol.call import Call
from luthier.protocol.errors import WireError

SERVED = ("InService", "Updating")


def create(call: Call, service: Service) -> dict[str, Any]:
    variants = _variants(call, service)
    without_meaning.note(call, service)
    made = hosting.make(call, service, ENDPOINT, call.parameters["EndpointName"], {"variants": variants})
    return {"EndpointArn": made.arn}


def update(call: Call, service: Service) -> dict[str, Any]:
    """Until what the new config names is ready, the endpoint answers as before; for good, where it never is."""
    given = call.parameters
    endpoint = _in_service(call, service)
    number = endpoint.facts.get("updates", 0) + 1
    variants = [{**one, "Folder": f"{one['VariantName']}.{number}"} for one in _variants(call, service)]
    excluded = {one["VariantPropertyType"] for one in given.get("ExcludeRetainedVariantProperties", ())}
    if given.get("RetainAllVariantProperties") and "DesiredWeight" not in excluded:
        weights = {one["VariantName"]: one["Weight"] for one in endpoint.facts["variants"]}
        variants = [{**one, "Weight": weights.get(one["VariantName"], one["Weight"])} for one in variants]
    pending = {"number": number, "EndpointConfigName": given["EndpointConfigName"], "started": time.time(),
               "variants": variants}  # fmt: skip
    facts = {"pending": pending, "updates": number, "failure": None}
    try:
        service.store.update(endpoint.id, "Updating", facts=facts)
    except (IllegalMoveError, GoneError):
        raise _busy(endpoint, "leaving InService") from None
    without_meaning.note(call, service)
    return {"EndpointArn": endpoint.arn}


def update_weights(call: Call, service: Service) -> dict[str, Any]:
    """The next request is already shared out by the new weights."""
    endpoint = _in_service(call, service)
    wanted = {one["VariantName"]: one for one in call.parameters["DesiredWeightsAndCapacities"]}
    before = {one["VariantName"]: one for one in endpoint.facts["variants"]}
    for name in wanted.keys() - before.keys():
        raise UserError(f"DesiredWeightsAndCapacities: no variant {name}; expected some of {', '.join(before)}")
    variants = [
        {**one, "Weight": wanted.get(name, {}).get("DesiredWeight", one["Weight"]),
         "InstanceCount": wanted.get(name, {}).get("DesiredInstanceCount", one["InstanceCount"])}
        for name, one in before.items()
    ]  # fmt: skip
    if not any(one["Weight"] for one in variants):
        raise UserError("DesiredWeightsAndCapacities: every weight would be 0; give one of the variants a weight")
    service.store.update(endpoint.id, facts={"variants": variants})
    without_meaning.note(call, service)
    return {"EndpointArn": endpoint.arn}


def describe(call: Call, service: Service) -> dict[str, Any]:
    endpoint = hosting.find(call, service, ENDPOINT, call.parameters["EndpointName"])
    served = endpoint.status in SERVED
    return described(endpoint, "DescribeEndpoint") | present({
        "EndpointName": endpoint.name,
        "EndpointArn": endpoint.arn,
        "EndpointStatus": endpoint.status,
        "ProductionVariants": [_summed(variant, endpoint, served) for variant in endpoint.facts["variants"]],
        "PendingDeploymentSummary": _pending(endpoint),
        "FailureReason": reason(endpoint.facts.get("failure")),
        "CreationTime": endpoint.created,
        "LastModifiedTime": endpoint.modified,
    })  # fmt: skip


def list_(call: Call, service: Service) -> dict[str, Any]:
    found, more = listed(call, service, ENDPOINT, SortOrder(), _summary)
    return {"Endpoints": found} | more


def delete(call: Call, service: Service) -> dict[str, Any]:
    """The endpoint is Deleting from now on; it is gone when the supervisor has ended what serves it."""
    endpoint = hosting.find(call, service, ENDPOINT, call.parameters["EndpointName"])
    service.store.update(endpoint.id, "Deleting")
    return {}


def _in_service(call: Call, service: Service) -> Resource:
    """The endpoint, which can be changed; ValidationException."""
    endpoint = hosting.find(call, service, ENDPOINT, call.parameters["EndpointName"])
    if endpoint.status != "InService":
        raise _busy(endpoint, f"in status {endpoint.status}")
    return endpoint


def _busy(endpoint: Resource, how: str) -> WireError:
    text = f'Cannot update endpoint "{endpoint.arn}" {how}; it must be InService.'
    return WireError("ValidationException", text)


def _variants(call: Call, service: Service) -> list[dict[str, Any]]:
    """The variants of the config that the call names."""
    config = hosting.find(call, service, CONFIG, call.parameters["EndpointConfigName"])
    return [
        _variant(variant, hosting.find(call, service, MODEL, variant["ModelName"]))
        for variant in config.request["ProductionVariants"]
    ]


def _pending(endpoint: Resource) -> dict[str, Any] | None:
    """The update at work."""
    found = endpoint.facts.get("pending")
    return found and {
        "EndpointConfigName": found["EndpointConfigName"],
        "ProductionVariants": [_summed(variant, endpoint, served=False) for variant in found["variants"]],
        "StartTime": found["started"],
    }


def _variant(variant: Mapping[str, Any], model: Resource) -> dict[str, Any]:
    container = models.container(model)
    source = container.get("ModelDataSource", {}).get("S3DataSource", {})
    return {
        "VariantName": variant["VariantName"],
        "ModelName": model.name,
        "Image": container.get("Image", ""),
        "ModelData": container.get("ModelDataUrl") or source.get("S3Uri", ""),
        "Environment": container.get("Environment", {}),
        "Weight": variant["InitialVariantWeight"],
        "InstanceCount": variant.get("InitialInstanceCount", 1),
    }


def _summed(variant: Mapping[str, Any], endpoint: Resource, served: bool) -> dict[str, Any]:
    image = variant["Image"]
    images = [{"SpecifiedImage": image, "ResolvedImage": image, "ResolutionTime": endpoint.created}]
    return present({
        "VariantName": variant["VariantName"],
        "DeployedImages": images if image else None,
        "CurrentWeight": variant["Weight"],
        "DesiredWeight": variant["Weight"],
        "CurrentInstanceCount": variant["InstanceCount"] if served else 0,
        "DesiredInstanceCount": variant["InstanceCount"],
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
