"""Endpoint configs: which models an endpoint serves, each as a production variant with its weight."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from luthier.api import fields_without_effect, hosting
from luthier.api.service import Service
from luthier.errors import UserError
from luthier.jobs.states import ENDPOINT_CONFIG, MODEL
from luthier.protocol.call import Call

MAX_WEIGHT = 1e6
UNSUPPORTED = ("AsyncInferenceConfig", "ExplainerConfig", "ShadowProductionVariants")


def create(call: Call, service: Service) -> dict[str, Any]:
    request = call.parameters
    for fault in _faults(request):
        raise UserError(fault)
    fields_without_effect.refuse_encryption_keys(call)
    for variant in request["ProductionVariants"]:
        hosting.find(call, service, MODEL, variant["ModelName"])
        variant.setdefault("InitialVariantWeight", 1.0)
    fields_without_effect.log_once(call, service)
    return {"EndpointConfigArn": hosting.create(call, service, ENDPOINT_CONFIG, request["EndpointConfigName"]).arn}


def _faults(request: Mapping[str, Any]) -> Iterator[str]:
    for name in UNSUPPORTED:
        if request.get(name):
            yield f"{name} is not supported; leave it out"
    if request.get("DataCaptureConfig", {}).get("EnableCapture"):
        yield "DataCaptureConfig.EnableCapture is not supported; set it to false"
    variants = request["ProductionVariants"]
    for name, count in Counter(variant["VariantName"] for variant in variants).items():
        if count > 1:
            yield f"ProductionVariants: {count} variants are named {name}; expected a name of its own for each"
    for variant in variants:
        if not variant.get("ModelName"):
            place = f"ProductionVariants, {variant['VariantName']}"
            yield f"{place}: no ModelName is given; inference components are not supported"
        if not variant.get("InitialVariantWeight", 1.0) <= MAX_WEIGHT:
            yield f"ProductionVariants, {variant['VariantName']}: InitialVariantWeight is above {MAX_WEIGHT:,.0f}"
    if all(variant.get("InitialVariantWeight") == 0 for variant in variants):
        yield "ProductionVariants: every InitialVariantWeight is 0, so none would be called; give one of them a weight"


OPERATIONS = {"CreateEndpointConfig": create, **hosting.describe_list_delete(ENDPOINT_CONFIG, "EndpointConfig")}
