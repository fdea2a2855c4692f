"""The operation that a REST request asks for, by method, path, query and headers, as the service's model binds them."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote

from luthier.protocol import model

# Operations of S3's REST API that botocore's model lacks.
UNMODELED = {
    "s3": (
        ("PostObject", "POST", "/{Bucket}"),
        ("BucketCORSPreflightCheck", "OPTIONS", "/{Bucket}"),
        ("ObjectCORSPreflightCheck", "OPTIONS", "/{Bucket}/{Key+}"),
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RestRoute:
    """How requests for an operation look. `query` are fields with their values, None for any value."""

    operation: str
    method: str
    query: Mapping[str, str | None] = field(default_factory=dict)
    headers: frozenset[str] = frozenset()

    def accepts(self, query: Mapping[str, str], headers: Mapping[str, str]) -> bool:
        """Whether a request for the path has the fields and headers that the operation requires."""
        fields = all(name in query and value in (None, query[name]) for name, value in self.query.items())
        return fields and self.headers <= headers.keys()


def match(
    service: str, method: str, path: str, query: Mapping[str, str], headers: Mapping[str, str]
) -> tuple[str, dict[str, str]] | None:
    """The operation's name and the decoded labels of its path; None for no operation. `headers` are in lower case.

    A slash at the end of the path counts only if the path would match nothing without it.
    """
    if path.startswith("//"):
        path = f"/%2F{path[2:]}"  # the second slash belongs to the first label
    for candidate in (path, path.rstrip("/") or "/"):
        for pattern, routes in _routes(service):
            at_path = pattern.fullmatch(candidate)
            with_method = [route for route in routes if at_path and route.method == method.upper()]
            if at_path and with_method:
                name = next((route.operation for route in with_method if route.accepts(query, headers)), None)
                return (name, {label: unquote(text) for label, text in at_path.groupdict().items()}) if name else None
    return None


@functools.cache
def _routes(service: str) -> list[tuple[re.Pattern[str], list[RestRoute]]]:
    """The routes of each path, literal paths before those with labels.

    The more a route requires, the sooner it comes; of two that require as much, the one that is not deprecated.
    """
    paths: dict[str, list[RestRoute]] = {}
    loaded = model.load(service)
    operations = [loaded.operation_model(name) for name in loaded.operation_names]
    for operation in sorted(operations, key=lambda operation: bool(operation.deprecated)):
        path, _, literals = operation.http["requestUri"].partition("?")
        fields: dict[str, str | None] = dict(parse_qsl(literals, keep_blank_values=True))
        required = dict.fromkeys(_required(operation.input_shape, "querystring"))
        headers = frozenset(header.lower() for header in _required(operation.input_shape, "header"))
        route = RestRoute(
            operation=operation.name, method=operation.http["method"], query=required | fields, headers=headers
        )
        paths.setdefault(path, []).append(route)
    for name, method, path in UNMODELED.get(service, ()):
        paths.setdefault(path, []).append(RestRoute(operation=name, method=method))
    for routes in paths.values():
        routes.sort(key=lambda route: len(route.query) + len(route.headers), reverse=True)
    return [(_pattern(path), paths[path]) for path in sorted(paths, key=lambda path: path.count("{"))]


def _required(shape: Any, location: str) -> list[str]:
    """The wire names of the members that are required at a location."""
    members = [] if shape is None else [(name, shape.members[name]) for name in shape.required_members]
    return [
        member.serialization.get("name", name)
        for name, member in members
        if member.serialization.get("location") == location
    ]


def _pattern(path: str) -> re.Pattern[str]:
    """A path of a model as a pattern: {label} is a part between slashes, {label+} goes on over them."""
    escaped = re.sub(r"\\\{(\w+)(\\\+)?\\\}", lambda found: f"(?P<{found[1]}>{'.+' if found[2] else '[^/]+'})",
                     re.escape(path))  # fmt: skip
    return re.compile(escaped, re.DOTALL)
