"""Values that a service's model allows: every member of a shape, so that what gets lost on the wire is seen."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from botocore.model import Shape

from luthier.protocol.validate import matches

CANDIDATES = (
    "a", "abc-1", "11", "0.5", "s3://bucket/key", "arn:aws:iam::123456789012:role/Trainer", "text/csv", "1.0", "1.0.0",
    "arn:aws:sagemaker:eu-west-1:123456789012:training-job/abc", "123456789012", "https://example.com/x", "4K", "/a/b",
    "arn:aws:sagemaker:eu-west-1:123456789012:model-package/abc/1", "arn:aws:lambda:eu-west-1:123456789012:function:f",
    "subnet-0a", "ml.m5.large", "arn:aws:sagemaker:eu-west-1:aws:hub-content/x/Model/y/1.0.0", "mlflow", "ab" * 10,
    "arn:aws:logs:eu-west-1:123456789012:log-group:g", "2030-01-02T03:04:05Z",
    "123456789012.dkr.ecr.eu-west-1.amazonaws.com/i",
    "aabbccddee00112233", "/", "0" * 40, "P1D", "us-east-1", "abc.def.ghi", "3.11", "10.0.0.1", "a@b.de",
)  # fmt: skip
_KIND = re.compile(r":([a-z-]{3,})/")
MOMENT = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
DEEPEST = 8


class Unknown(Exception):
    """No candidate satisfies a pattern."""


def sample(shape: Shape, depth: int = 0) -> Any:
    """A value of the shape with all its members down to DEEPEST levels, and those that are required below."""
    make: Callable[[Any, int], Any] = _MAKERS.get(shape.type_name, _text)
    return make(shape, depth)


def _structure(shape: Any, depth: int) -> dict[str, Any]:
    made = {}
    for name, member in shape.members.items():
        required = name in shape.required_members
        if depth >= DEEPEST and not required:
            continue
        try:
            made[name] = sample(member, depth + 1)
        except (Unknown, RecursionError):
            if required:
                raise
        if shape.is_tagged_union and made:
            break
    return made


def _list(shape: Any, depth: int) -> list[Any]:
    count = min(max(2 if depth < 2 else 1, shape.metadata.get("min", 0)), shape.metadata.get("max", 2))
    return [sample(shape.member, depth + 1)] * count


def _map(shape: Any, depth: int) -> dict[str, Any]:
    return {sample(shape.key, depth + 1): sample(shape.value, depth + 1)}


def _text(shape: Any, depth: int) -> str:
    if shape.enum:
        return str(shape.enum[0])
    least, most = shape.metadata.get("min", 0), shape.metadata.get("max", 10**9)
    pattern = shape.metadata.get("pattern", "(?s).*")
    arns = [f"arn:aws:sagemaker:eu-west-1:123456789012:{kind}/abc" for kind in _KIND.findall(pattern)]
    for candidate in (*CANDIDATES, *arns):
        longer = candidate.ljust(least, candidate[-1])
        if len(longer) <= most and matches(pattern, longer):
            return longer
    raise Unknown(f"{shape.name}: {pattern}")


def _number(shape: Any, depth: int) -> int:
    return int(max(1, shape.metadata.get("min", 1)))


_MAKERS: dict[str, Callable[[Any, int], Any]] = {
    "structure": _structure,
    "list": _list,
    "map": _map,
    "integer": _number,
    "long": _number,
    "float": lambda shape, depth: 0.5 if shape.metadata.get("min", 0) <= 0.5 else float(shape.metadata["min"]),
    "double": lambda shape, depth: 0.5 if shape.metadata.get("min", 0) <= 0.5 else float(shape.metadata["min"]),
    "boolean": lambda shape, depth: True,
    "timestamp": lambda shape, depth: MOMENT,
    "blob": lambda shape, depth: b"\x00\xffbytes",
}
