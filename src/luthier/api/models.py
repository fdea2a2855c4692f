"""Models: an artifact and the container it is said to be served by. The container is kept and not run."""

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
    fields_without_effect.refuse_keys(call)
    fields_without_effect.note(call, service)
    progress = ModelProgress(eula=_eula(call))
    return {"ModelArn": hosting.make(call, service, MODEL, call.parameters["ModelName"], progress).arn}


def container(model: Resource) -> Mapping[str, Any]:
    """The one container of a model."""
    request = model.request
    found: Mapping[str, Any] = request.get("PrimaryContainer") or request["Containers"][0]
    return found


def _eula(call: Call) -> dict[str, str] | None:
    """The record of the licence of a gated base model that is served as it is; EulaError. Tuned ones ask for none."""
    given = call.parameters
    found = given.get("PrimaryContainer") or given["Containers"][0]
    source = found.get("ModelDataSource", {}).get("S3DataSource", {})
    entry = jumpstart.base_model_of_key(found.get("ModelDataUrl") or source.get("S3Uri", ""))
    accept = bool(source.get("ModelAccessConfig", {}).get("AcceptEula"))
    how = "set ModelDataSource.S3DataSource.ModelAccessConfig.AcceptEula to true"
    return licence_record(entry, accept, call.principal.arn, how)


def _faults(given: Mapping[str, Any]) -> Iterator[str]:
    containers = given.get("Containers") or []
    if given.get("PrimaryContainer") and containers:
        yield "PrimaryContainer and Containers exclude each other; leave one of them out"
    if len(containers) > 1:
        yield f"Containers holds {len(containers)}; an inference pipeline is not supported: expected one container"
    if not given.get("PrimaryContainer") and not containers:
        yield "no container is given; expected PrimaryContainer"
    for found in (given.get("PrimaryContainer") or {}, *containers):
        yield from _container_faults(found)


def _container_faults(given: Mapping[str, Any]) -> Iterator[str]:
    for name in ("ModelPackageName", "InferenceSpecificationName", "MultiModelConfig", "AdditionalModelDataSources"):
        if given.get(name):
            yield f"PrimaryContainer.{name} is not supported; expected ModelDataUrl or ModelDataSource"
    if given.get("Mode", "SingleModel") != "SingleModel":
        yield f"PrimaryContainer.Mode {given['Mode']} is not supported; expected SingleModel"
    source = given.get("ModelDataSource", {}).get("S3DataSource", {})
    if given.get("ModelDataUrl") and source:
        yield "PrimaryContainer: ModelDataUrl and ModelDataSource exclude each other; leave one of them out"
    for uri in (given.get("ModelDataUrl"), source.get("S3Uri")):
        if uri and not uri.startswith("s3://"):
            yield f"PrimaryContainer: {uri}: expected s3://BUCKET/KEY of a model's artifact"


OPERATIONS = {"CreateModel": create, **hosting.plain(MODEL, "Model")}
