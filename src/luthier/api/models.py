"""Models: an artifact and the container that is to serve it. The container is stored and not run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from luthier.api import fields_without_effect, hosting
from luthier.api.service import Service
from luthier.catalog import jumpstart
from luthier.catalog.entry import licence_record
from luthier.errors import UserError
from luthier.jobs.progress import ModelProgress
from luthier.jobs.resource import Resource
from luthier.jobs.states import MODEL
from luthier.protocol.call import Call


def create(call: Call, service: Service) -> dict[str, Any]:
    for fault in _faults(call.parameters):
        raise UserError(fault)
    fields_without_effect.refuse_encryption_keys(call)
    fields_without_effect.log_once(call, service)
    progress = ModelProgress(eula=_eula(call))
    return {"ModelArn": hosting.create(call, service, MODEL, call.parameters["ModelName"], progress).arn}


def container(model: Resource) -> Mapping[str, Any]:
    """The one container of a model."""
    request = model.request
    first: Mapping[str, Any] = request.get("PrimaryContainer") or request["Containers"][0]
    return first


def _eula(call: Call) -> dict[str, str] | None:
    """The record of the licence of a gated base model that is served as it is; EulaError. Tuned ones ask for none."""
    request = call.parameters
    served = request.get("PrimaryContainer") or request["Containers"][0]
    source = served.get("ModelDataSource", {}).get("S3DataSource", {})
    entry = jumpstart.base_model_of_key(served.get("ModelDataUrl") or source.get("S3Uri", ""))
    accept = bool(source.get("ModelAccessConfig", {}).get("AcceptEula"))
    how = "set ModelDataSource.S3DataSource.ModelAccessConfig.AcceptEula to true"
    return licence_record(entry, accept, call.principal.arn, how)


def _faults(request: Mapping[str, Any]) -> Iterator[str]:
    containers = request.get("Containers") or []
    if request.get("PrimaryContainer") and containers:
        yield "PrimaryContainer and Containers exclude each other; leave one of them out"
    if len(containers) > 1:
        yield f"Containers holds {len(containers)}; an inference pipeline is not supported: expected one container"
    if not request.get("PrimaryContainer") and not containers:
        yield "no container is given; expected PrimaryContainer"
    for served in (request.get("PrimaryContainer") or {}, *containers):
        yield from _container_faults(served)


def _container_faults(container: Mapping[str, Any]) -> Iterator[str]:
    for name in ("ModelPackageName", "InferenceSpecificationName", "MultiModelConfig", "AdditionalModelDataSources"):
        if container.get(name):
            yield f"PrimaryContainer.{name} is not supported; expected ModelDataUrl or ModelDataSource"
    if container.get("Mode", "SingleModel") != "SingleModel":
        yield f"PrimaryContainer.Mode {container['Mode']} is not supported; expected SingleModel"
    source = container.get("ModelDataSource", {}).get("S3DataSource", {})
    if container.get("ModelDataUrl") and source:
        yield "PrimaryContainer: ModelDataUrl and ModelDataSource exclude each other; leave one of them out"
    for uri in (container.get("ModelDataUrl"), source.get("S3Uri")):
        if uri and not uri.startswith("s3://"):
            yield f"PrimaryContainer: {uri}: expected s3://BUCKET/KEY of a model's artifact"
        if uri and jumpstart.is_cache_uri(uri) and jumpstart.base_model_of_key(uri) is None:
            yield f"PrimaryContainer: could not find model data at {uri}: no model of `luthier models` has this key"


OPERATIONS = {"CreateModel": create, **hosting.describe_list_delete(MODEL, "Model")}
