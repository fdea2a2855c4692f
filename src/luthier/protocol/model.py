"""The services' published models, as botocore ships them: shapes, operations and their HTTP bindings.

Loaded on first use and kept without their documentation, which is most of their size.
"""

from __future__ import annotations

import threading
from typing import Any

from botocore.loaders import Loader
from botocore.model import OperationModel, ServiceModel

SERVICES = ("sagemaker", "sagemaker-runtime", "logs", "cloudwatch", "sts", "iam", "s3")

_models: dict[str, ServiceModel] = {}
_loading = threading.Lock()


def load(service: str) -> ServiceModel:
    """The model of one of SERVICES, by botocore's name; the same object each time."""
    if service not in SERVICES:
        raise KeyError(service)
    with _loading:
        if service not in _models:
            # The extras are changes that botocore makes for its own clients.
            description = Loader(include_default_extras=False).load_service_model(service, "service-2")
            _models[service] = ServiceModel(_without_documentation(description), service)
        return _models[service]


def operation(service: str, name: str) -> OperationModel:
    """The model of an operation that the service has."""
    return load(service).operation_model(name)


def has(service: str, name: str) -> bool:
    """Whether AWS's service has the operation, implemented here or not."""
    return name in load(service).operation_names


def _without_documentation(part: Any) -> Any:
    """The same description without its texts, as far as they are texts (a member may be named `documentation`)."""
    if isinstance(part, dict):
        return {
            key: _without_documentation(value)
            for key, value in part.items()
            if key != "documentation" or not isinstance(value, str)
        }
    return [_without_documentation(value) for value in part] if isinstance(part, list) else part
