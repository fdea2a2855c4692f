"""Request fields without effect on a local machine: stored, returned by Describe, and logged once.

The documentation prints this table. Encryption keys are not among them: they are refused, because data that should be
encrypted must not be stored in plain text.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from luthier.api.service import Service
from luthier.protocol.call import Call
from luthier.protocol.errors import WireError

log = logging.getLogger(__name__)

_OWN_NAMES = ("HyperParameters", "Environment", "Tags")  # their keys are the caller's, not the API's
# Environment variables of a training job that have an effect.
_VARIABLES_WITH_EFFECT = ("LUTHIER_MODEL", "accept_eula")
FIELDS: Mapping[str, Mapping[str, str]] = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text("utf-8"))
"""Operation -> path of the field -> why it has no effect."""


def log_once(call: Call, service: Service) -> None:
    """Log each field of the call that has no effect, once per field."""
    for path, why in FIELDS.get(call.operation, {}).items():
        field = f"{call.operation}.{path}"
        if field not in service.logged and any(map(_is_set, _values_at(call.parameters, path.split(".")))):
            service.logged.add(field)
            log.warning("%s: %s is stored but has no effect: %s", call.operation, path, why)


def refuse_encryption_keys(call: Call) -> None:
    """ValidationException for any KmsKeyId, because Luthier does not encrypt."""
    for path, key in _encryption_keys(call.parameters, ""):
        raise WireError(
            "ValidationException",
            f"{path}={key}: Luthier does not encrypt what it stores yet; leave it out, and keep the server's home on "
            "an encrypted disk",
        )


def _is_set(value: Any) -> bool:
    """Whether a value is set: not empty, zero or False; of environment variables, only those without effect count."""
    return bool(value.keys() - set(_VARIABLES_WITH_EFFECT)) if isinstance(value, Mapping) else bool(value)


def _values_at(node: Any, path: list[str]) -> Iterator[Any]:
    """Yield the values at a path, descending into the items of lists."""
    if isinstance(node, list):
        for item in node:
            yield from _values_at(item, path)
    elif not path:
        yield node
    elif isinstance(node, Mapping) and path[0] in node:
        yield from _values_at(node[path[0]], path[1:])


def _encryption_keys(node: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, list):
        for item in node:
            yield from _encryption_keys(item, path)
    elif isinstance(node, Mapping):
        for name, value in node.items():
            inner = f"{path}.{name}" if path else name
            if name in _OWN_NAMES:
                continue
            if name.endswith("KmsKeyId") and isinstance(value, str) and value:
                yield inner, value
            else:
                yield from _encryption_keys(value, inner)
