"""Serialise results by their shape: JSON values, XML elements, headers.

Members that the shape lacks and members that are None are left out. Times are datetimes, epoch seconds or ISO 8601
strings; without a time zone they are in UTC.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any
from xml.sax.saxutils import escape, quoteattr

from botocore.model import Shape

NOT_IN_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")
HEADER_LOCATIONS = ("header", "headers")
_IN_BODY = None


def to_utc(value: datetime | float | str) -> datetime:
    """A time as an aware datetime in UTC; ValueError, OverflowError or OSError for an invalid one."""
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    elif not isinstance(value, datetime):
        return datetime.fromtimestamp(value, UTC)
    return value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)


# JSON ----------------------------------------------------------------------------------------------------------------


def json_value(shape: Shape, value: Any) -> Any:
    """The value for json.dumps: times in epoch seconds to the millisecond, blobs in base64."""
    return _JSON.get(shape.type_name, _json_unchanged)(shape, value)


def _json_structure(shape: Shape, value: Mapping[str, Any]) -> Any:
    if getattr(shape, "is_document_type", False):
        return value
    return {
        member.serialization.get("name", name): json_value(member, value[name])
        for name, member in shape.members.items()
        if value.get(name) is not None and member.serialization.get("location") is _IN_BODY
    }


def _json_time(shape: Shape, value: Any) -> int | float:
    seconds = math.floor(to_utc(value).timestamp() * 1000 + 1e-6) / 1000
    return int(seconds) if seconds.is_integer() else seconds


def _json_float(shape: Shape, value: float) -> float | str:
    """A number, or AWS's string for NaN and the infinities, which JSON lacks."""
    if math.isfinite(value):
        return float(value)
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _json_unchanged(shape: Shape, value: Any) -> Any:
    return value


_JSON: dict[str, Callable[[Shape, Any], Any]] = {
    "structure": _json_structure,
    "list": lambda shape, value: [json_value(shape.member, item) for item in value],
    "map": lambda shape, value: {key: json_value(shape.value, entry) for key, entry in value.items()},
    "timestamp": _json_time,
    "float": _json_float,
    "double": _json_float,
    "integer": lambda shape, value: int(value),
    "long": lambda shape, value: int(value),
    "string": lambda shape, value: str(value),
    "blob": lambda shape, value: base64.b64encode(value).decode(),
}


# XML -----------------------------------------------------------------------------------------------------------------


def xml_element(name: str, shape: Shape, value: Any, iso: str, namespace: str = "") -> str:
    """A structure as an element; `iso` is the strftime format of times whose shape has no format."""
    space = f" xmlns={quoteattr(namespace)}" if namespace else ""
    return f"<{name}{space}{_attributes(shape, value)}>{''.join(_members(shape, value, iso))}</{name}>"


def xml_text(text: str) -> str:
    """Escaped text. Characters that XML does not allow become character references, as in S3."""
    return NOT_IN_XML.sub(lambda match: f"&#x{ord(match[0]):x};", escape(text))


def _element(name: str, shape: Shape, value: Any, iso: str) -> Iterator[str]:
    if shape.type_name == "structure":
        yield f"<{name}{_attributes(shape, value)}>"
        yield from _members(shape, value, iso)
        yield f"</{name}>"
    elif shape.type_name == "list":
        inner = shape.member.serialization.get("name")
        if shape.serialization.get("flattened"):
            for item in value:
                yield from _element(inner or name, shape.member, item, iso)
        else:
            yield f"<{name}>"
            for item in value:
                yield from _element(inner or "member", shape.member, item, iso)
            yield f"</{name}>"
    elif shape.type_name == "map":
        yield from _map(name, shape, value, iso)
    else:
        yield f"<{name}>{xml_text(_scalar(shape, value, iso))}</{name}>"


def _members(shape: Shape, value: Mapping[str, Any], iso: str) -> Iterator[str]:
    for name, member in shape.members.items():
        item_value = value.get(name)
        traits = member.serialization
        if item_value is not None and traits.get("location") is _IN_BODY and not traits.get("xmlAttribute"):
            yield from _element(traits.get("name", name), member, item_value, iso)


def _attributes(shape: Shape, value: Mapping[str, Any]) -> str:
    space = shape.serialization.get("xmlNamespace", {})
    prefix = space.get("prefix")
    text = f" xmlns{f':{prefix}' if prefix else ''}={quoteattr(space['uri'])}" if space else ""
    for name, member in shape.members.items():
        if member.serialization.get("xmlAttribute") and value.get(name) is not None:
            text += f" {member.serialization['name']}={quoteattr(str(value[name]))}"
    return text


def _map(name: str, shape: Shape, value: Mapping[str, Any], iso: str) -> Iterator[str]:
    flat = shape.serialization.get("flattened")
    keys, entries = shape.key.serialization.get("name", "key"), shape.value.serialization.get("name", "value")
    yield "" if flat else f"<{name}>"
    for key, entry in value.items():
        outer = name if flat else "entry"
        yield f"<{outer}>"
        yield from _element(keys, shape.key, key, iso)
        yield from _element(entries, shape.value, entry, iso)
        yield f"</{outer}>"
    yield "" if flat else f"</{name}>"


def _scalar(shape: Shape, value: Any, iso: str) -> str:
    if shape.type_name == "timestamp":
        return _time(value, shape.serialization.get("timestampFormat", "iso8601"), iso)
    if shape.type_name == "blob":
        return base64.b64encode(value).decode()
    if shape.type_name == "boolean":
        return "true" if value else "false"
    return str(int(value)) if shape.type_name in ("integer", "long") else str(value)


def _time(value: Any, form: str, iso: str) -> str:
    time = to_utc(value)
    if form == "unixTimestamp":
        return str(int(time.timestamp()))
    return format_datetime(time, usegmt=True) if form == "rfc822" else time.strftime(iso)


# Headers -------------------------------------------------------------------------------------------------------------


def headers(shape: Shape, value: Mapping[str, Any]) -> dict[str, str]:
    """The members that the shape binds to headers; a map's keys get its name as prefix."""
    result: dict[str, str] = {}
    for name, member in shape.members.items():
        item_value, traits = value.get(name), member.serialization
        if item_value is None or traits.get("location") not in HEADER_LOCATIONS:
            continue
        wire_name = traits.get("name", name)
        if traits["location"] == "headers":
            result |= {f"{wire_name}{key}": str(entry) for key, entry in item_value.items()}
        elif member.type_name == "timestamp":
            result[wire_name] = _time(item_value, traits.get("timestampFormat", "rfc822"), "%Y-%m-%dT%H:%M:%SZ")
        else:
            result[wire_name] = ",".join(item_value) if member.type_name == "list" else _scalar(member, item_value, "")
    return result
