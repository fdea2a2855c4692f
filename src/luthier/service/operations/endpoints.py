"""Endpoints: create, describe, list, delete. The supervisor starts and ends what serves them.

Facts of an endpoint, made here and gone on with by the supervisor:

    variants    [{"VariantName", "ModelName", "Image", "ModelData" (s3:// of the artifact, or ""), "Environment",
                  "Weight", "InstanceCount", and, once it is served, "address"}]
    address     of the one process, where the variants have none of their own
    failure     why it is Failed
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luthier.protocol.call import Call
from luthier.service.operations import hosting, models, without_meaning
from luthier.service.operations.description import described, present, reason
from luthier.service.operations.hosting import CONFIG, ENDPOINT, MODEL
from luthier.service.operations.paging import Order, listed
from luthier.service.service import Service
from luthier.service.store import Resource


def create(call: Call, service: Service) -> dict[str, Any]:
    config = hosting.find(call, service, CONFIG, call.parameters["EndpointConfigName"])
    variants = [
        _variant(variant, hosting.find(call, service, MODEL, variant["ModelName"]))
        for variant in config.request["ProductionVariants"]
    ]
    without_meaning.note(call, service)
    made = hosting.make(call, service, ENDPOINT, call.parameters["EndpointName"], {"variants": variants})
    return {"EndpointArn": made.arn}


def describe(call: Call, service: Service) -> dict[str, Any]:
    endpoint = hosting.find(call, service, ENDPOINT, call.parameters["EndpointName"])
    served = endpoint.status == "InService"
    return described(endpoint, "DescribeEndpoint") | present({
        "EndpointName": endpoint.name,
        "EndpointArn": endpoint.arn,
        "EndpointStatus": endpoint.status,
        "ProductionVariants": [_summed(variant, endpoint, served) for variant in endpoint.facts["variants"]],
        "FailureReason": reason(endpoint.facts.get("failure")),
        "CreationTime": endpoint.created,
        "LastModifiedTime": endpoint.modified,
    })  # fmt: skip


def list_(call: Call, service: Service) -> dict[str, Any]:
    found, more = listed(call, service, ENDPOINT, Order(), _summary)
    return {"Endpoints": found} | more


def delete(call: Call, service: Service) -> dict[str, Any]:
    """The endpoint is Deleting from now on; it is gone when the supervisor has ended what serves it."""
    endpoint = hosting.find(call, service, ENDPOINT, call.parameters["EndpointName"])
    service.store.update(endpoint.id, "Deleting")
    return {}


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
    "DescribeEndpoint": describe,
    "ListEndpoints": list_,
    "DeleteEndpoint": delete,
}
