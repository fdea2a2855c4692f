"""Check the constraints of an operation's input, with AWS's messages; knows no operation by name.

botocore's clients check some of them (required, type, min, unions); the server checks bounds, patterns and enums, too,
and reports all violations of a request at once.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import Any

import regex
from botocore.model import OperationModel, Shape

from luthier.protocol.errors import WireError

MAX_VIOLATIONS = 1_000  # in one response
MAX_SHOWN = 1_024  # characters of a value in a message
PATTERN_SECONDS = 0.5  # for one value; some patterns take exponential time for hostile values
MAX_SECONDS = 2.0  # for a whole request
# Java's UTF-16 pairs, which no other regular expressions have.
_JAVA_PAIRS = (r"\uD800\uDC00-\uDBFF\uDFFF", r"\U00010000-\U0010FFFF")
_AT_LEAST, _AT_MOST = "greater than or equal to", "less than or equal to"


def validate(operation: OperationModel, parameters: dict[str, Any]) -> None:
    """Check the parameters of an operation, whose types are right already.

    Raises WireError ValidationException that lists every violation, in the order of the model's members.
    """
    if operation.input_shape is None:
        return
    violations: list[str] = []
    more, deadline = "", time.monotonic() + MAX_SECONDS
    for violation in _structure(operation.input_shape, parameters, ""):
        violations.append(violation)
        if len(violations) == MAX_VIOLATIONS or time.monotonic() > deadline:
            more = "; there may be more, the check ended here"
            break
    if violations:
        noun = "error" if len(violations) == 1 else "errors"
        raise WireError(
            "ValidationException", f"{len(violations)} validation {noun} detected: {'; '.join(violations)}{more}"
        )


def _structure(shape: Shape, value: dict[str, Any], path: str) -> Iterator[str]:
    if getattr(shape, "is_tagged_union", False) and len(value) != 1:
        names = ", ".join(_camel(name) for name in shape.members)
        yield _violation(shape, value, path, f"Member must have exactly one of these members set: [{names}]")
    required = set(shape.required_members)
    for name, member in shape.members.items():
        inner = f"{path}.{_camel(name)}" if path else _camel(name)
        if value.get(name) is not None:
            yield from _member(member, value[name], inner)
        elif name in required:
            yield f"Value null at '{inner}' failed to satisfy constraint: Member must not be null"


def _member(shape: Shape, value: Any, path: str) -> Iterator[str]:
    constraints = _constraints(shape)
    yield from (_violation(shape, value, path, text) for text, satisfied in constraints if not satisfied(value))
    if shape.type_name == "structure":
        if not shape.is_document_type:
            yield from _structure(shape, value, path)
    elif shape.type_name == "list":
        yield from _items(shape, value, path)
    elif shape.type_name == "map":
        yield from _entries(shape, value, path)


def _items(shape: Shape, value: Sequence[Any], path: str) -> Iterator[str]:
    item = shape.member
    if item.type_name in ("structure", "list", "map"):
        for number, entry in enumerate(value, 1):
            yield from _member(item, entry, f"{path}.{number}.member")
    elif _has_violation(item, value):
        yield _violation(shape, value, path, f"Member must satisfy constraint: [{_constraint_texts(item)}]")


def _entries(shape: Shape, value: dict[str, Any], path: str) -> Iterator[str]:
    if _has_violation(shape.key, list(value)):
        yield _violation(shape, value, path, f"Map keys must satisfy constraint: [{_constraint_texts(shape.key)}]")
    if shape.value.type_name in ("structure", "list", "map"):
        for name, entry in value.items():
            yield from _member(shape.value, entry, f"{path}.{name[:MAX_SHOWN]}.member")
    elif _has_violation(shape.value, list(value.values())):
        yield _violation(shape, value, path, f"Map value must satisfy constraint: [{_constraint_texts(shape.value)}]")


def _has_violation(shape: Shape, values: Sequence[Any]) -> bool:
    constraints = _constraints(shape)
    return any(not satisfied(value) for value in values for _, satisfied in constraints)


def _constraint_texts(shape: Shape) -> str:
    return ", ".join(text for text, _ in _constraints(shape))


Constraint = tuple[str, Callable[[Any], bool]]


def _constraints(shape: Shape) -> list[Constraint]:
    """The constraints on a value of the shape, each with AWS's message."""
    limits, constraints = shape.metadata, list[Constraint]()
    if shape.type_name in ("string", "list", "map", "blob"):
        constraints += _bounds(limits, "length", _length)
    elif shape.type_name in ("integer", "long", "float", "double", "byte", "short"):
        constraints += _bounds(limits, "value", lambda value: value)
    if "enum" in limits:
        choices = limits["enum"]
        constraints.append(
            (f"Member must satisfy enum value set: [{', '.join(choices)}]", lambda value: value in choices)
        )
    if "pattern" in limits:
        pattern = limits["pattern"]
        text = f"Member must satisfy regular expression pattern: {pattern}"
        constraints.append((text, lambda value: matches(pattern, value)))
    return constraints


def _bounds(limits: dict[str, Any], what: str, measure: Callable[[Any], float]) -> Iterator[Constraint]:
    if "max" in limits:
        most = limits["max"]
        yield f"Member must have {what} {_AT_MOST} {most}", lambda value: measure(value) <= most
    if "min" in limits:
        least = limits["min"]
        yield f"Member must have {what} {_AT_LEAST} {least}", lambda value: measure(value) >= least


def _length(value: Any) -> int:
    # A streamed body has no length yet; its operation limits it.
    return len(value) if hasattr(value, "__len__") else 0


def matches(pattern: str, value: str) -> bool:
    """Whether all of `value` matches the pattern; False if matching takes too long."""
    try:
        return bool(_compiled(pattern).fullmatch(value, timeout=PATTERN_SECONDS))
    except TimeoutError:
        return False


@functools.cache
def _compiled(pattern: str) -> regex.Pattern[str]:
    return regex.compile(pattern.replace(*_JAVA_PAIRS))


def _violation(shape: Shape, value: Any, path: str, constraint: str) -> str:
    shown = "Value" if shape.metadata.get("sensitive") else f"Value '{_shown(value)}'"
    return f"{shown} at '{path}' failed to satisfy constraint: {constraint}"


def _shown(value: Any) -> str:
    text = _text(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def _text(value: Any) -> str:
    """The value as Java prints it, as in AWS's messages."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}={_text(entry)}" for name, entry in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_text, value)) + "]"
    if isinstance(value, bytes | bytearray):
        return f"{len(value)} bytes"
    return value.isoformat() if isinstance(value, datetime) else str(value)


def _camel(name: str) -> str:
    return name[:1].lower() + name[1:]
