"""The services' published models, as botocore ships them: shapes, operations and their HTTP bindings.

Loaded when a service is first asked for and kept without their documentation, which is most of their size.
"""

from __future__ import annotations

import threading
from typing import Any

from moto.core.loaders import create_loader
from moto.core.model import OperationModel, ServiceModel

SERVICES = ("sagemaker", "sagemaker-runtime", "logs", "sts", "iam", "s3")

_models: dict[str, ServiceModel] = {}
_loading = threading.Lock()


def load(service: str) -> ServiceModel:
    """The model of one of SERVICES, by botocore's name; the same object each time."""
    if service not in SERVICES:
        raise KeyError(service)
    with _loading:
        if service not in _models:
            description = create_loader().load_service_model(service, "service-2")
            _models[service] = ServiceModel(_undocumented(description), service)
        return _models[service]


def operation(service: str, name: str) -> OperationModel:
    """The model of an operation that the service has."""
    found: OperationModel = load(service).operation_model(name)
    return found


def has(service: str, name: str) -> bool:
    """Whether AWS's service has the operation, implemented here or not."""
    return name in load(service).operation_names


def _undocumented(part: Any) -> Any:
    """The same description without its texts, as far as they are texts (a member may be named `documentation`)."""
    if isinstance(part, dict):
        return {
            key: _undocumented(value)
            for key, value in part.items()
            if key != "documentation" or not isinstance(value, str)
        }
    return [_undocumented(value) for value in part] if isinstance(part, list) else part
