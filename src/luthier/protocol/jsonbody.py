"""Parse JSON bodies by their shape: types are checked as AWS's services do, nothing is coerced.

WireError SerializationException for a body that is not JSON, is nested too deeply, or has another type than the
model's. Constraints on values are checked in validate.py.
"""

from __future__ import annotations

import base64
import binascii
import json
import logging
import math
import re
from datetime import UTC, datetime
from typing import Any, NoReturn

from botocore.model import Shape

from luthier.protocol.errors import WireError

MAX_DEPTH = 64
BITS = {"byte": 8, "short": 16, "integer": 32, "long": 64}
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_logger = logging.getLogger(__name__)


def read(body: bytes) -> Any:
    """The body's value; an empty body is an empty object. NaN and infinity are errors."""
    if not body.strip():
        return {}
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_not_json)
    except UnicodeDecodeError:
        raise _malformed("the body is not UTF-8") from None
    except RecursionError:
        raise _malformed("the body is nested too deeply") from None
    except ValueError as error:
        raise _malformed(f"the body is not JSON: {error}") from None
    return value


def parse(shape: Shape, value: Any, path: str = "", depth: int = 0) -> Any:
    """The value with Python's types for timestamps, blobs and numbers; nulls and unknown members are left out."""
    if depth > MAX_DEPTH:
        raise _malformed(f"nested deeper than {MAX_DEPTH} levels", path)
    return _PARSERS.get(shape.type_name, _string)(shape, value, path, depth)


def _structure(shape: Shape, value: Any, path: str, depth: int) -> dict[str, Any]:
    if getattr(shape, "is_document_type", False):
        return value  # type: ignore[no-any-return]
    if not isinstance(value, dict):
        raise _unexpected(value, "a structure", path)
    wire_names = {member.serialization.get("name", name): name for name, member in shape.members.items()}
    parsed: dict[str, Any] = {}
    for wire_name, member_value in value.items():
        name = wire_names.get(wire_name)
        if name is None:
            _logger.debug("ignored the unknown member %.128r of %s", wire_name, path or shape.name)
        elif member_value is not None:
            parsed[name] = parse(
                shape.members[name], member_value, f"{path}.{wire_name}" if path else wire_name, depth + 1
            )
    return parsed


def _list(shape: Shape, value: Any, path: str, depth: int) -> list[Any]:
    if not isinstance(value, list):
        raise _unexpected(value, "a list", path)
    if None in value:
        raise _malformed("null found in a list", path)
    return [parse(shape.member, item, f"{path}[{number}]", depth + 1) for number, item in enumerate(value)]


def _map(shape: Shape, value: Any, path: str, depth: int) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _unexpected(value, "a map", path)
    parsed = {}
    for key, entry in value.items():
        inner = f"{path}.{key[:64]}"
        name = _string(shape.key, key, inner, depth)
        if entry is None:
            raise _malformed("null found as the value of a map", inner)
        parsed[name] = parse(shape.value, entry, inner, depth + 1)
    return parsed


def _string(shape: Shape, value: Any, path: str, depth: int) -> str:
    if not isinstance(value, str):
        raise _unexpected(value, "a String", path)
    if _UNSTORABLE.search(value):
        raise _malformed("a string holds a NUL or half of a surrogate pair", path)
    return value


def _integer(shape: Shape, value: Any, path: str, depth: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _unexpected(value, "an Integer", path)
    if isinstance(value, float) and not value.is_integer():
        raise _malformed(f"{value!r} can not be converted to an Integer", path)
    number = int(value)
    bits = BITS[shape.type_name]
    if not -(2 ** (bits - 1)) <= number < 2 ** (bits - 1):
        raise _malformed(f"the number does not fit into {bits} bits", path)
    return number


def _float(shape: Shape, value: Any, path: str, depth: int) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _unexpected(value, "a Float", path)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise _malformed("the number is out of range", path)
    return number


def _boolean(shape: Shape, value: Any, path: str, depth: int) -> bool:
    if not isinstance(value, bool):
        raise _unexpected(value, "a Boolean", path)
    return value


def _timestamp(shape: Shape, value: Any, path: str, depth: int) -> datetime:
    """From epoch seconds, an ISO 8601 string, or the datetime of a CBOR body."""
    try:
        if isinstance(value, str | datetime):
            time = datetime.fromisoformat(value) if isinstance(value, str) else value
            return time.astimezone(UTC) if time.tzinfo else time.replace(tzinfo=UTC)
        return datetime.fromtimestamp(_float(shape, value, path, depth), UTC)
    except (ValueError, OverflowError, OSError):
        raise _malformed("not a timestamp: expected epoch seconds", path) from None


def _blob(shape: Shape, value: Any, path: str, depth: int) -> bytes:
    if not isinstance(value, str):
        raise _unexpected(value, "a Blob", path)
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise _malformed("not base64", path) from None


_PARSERS = {
    "structure": _structure,
    "list": _list,
    "map": _map,
    "string": _string,
    "character": _string,
    "byte": _integer,
    "short": _integer,
    "integer": _integer,
    "long": _integer,
    "float": _float,
    "double": _float,
    "boolean": _boolean,
    "timestamp": _timestamp,
    "blob": _blob,
}
_TOKENS = {
    dict: "Start of structure or map found",
    list: "Start of list found",
    bool: "BOOLEAN_VALUE found",
    int: "NUMBER_VALUE found",
    float: "NUMBER_VALUE found",
    str: "STRING_VALUE found",
}


def _unexpected(value: Any, expected: str, path: str) -> WireError:
    return _malformed(f"{_TOKENS.get(type(value), 'null found')} where {expected} was expected", path)


def _malformed(message: str, path: str = "") -> WireError:
    where = f" at '{path[:256]}'" if path else ""
    return WireError("SerializationException", f"{message[:1].upper()}{message[1:]}{where}.")


def _not_json(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a JSON number")
