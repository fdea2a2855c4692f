"""Parameters from text: form fields, headers, path labels and XML elements, each by its shape.

ValueError for text of another type than the shape's; whether a value is allowed is for validate.py.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from xml.etree.ElementTree import Element

from botocore.model import Shape

from luthier.protocol.jsonbody import BITS
from luthier.protocol.serializer import to_utc

_INTEGER = re.compile(r"[+-]?[0-9]{1,19}")
_NAMESPACE = re.compile("{.*}")


# Text ----------------------------------------------------------------------------------------------------------------


def _parse_scalar(shape: Shape, text: str) -> Any:
    return _SCALARS[shape.type_name](shape, text)


def _integer(shape: Shape, text: str) -> int:
    if not _INTEGER.fullmatch(text):
        raise ValueError(f"{text[:64]!r} is not an integer")
    number, bits = int(text), BITS[shape.type_name]
    if not -(2 ** (bits - 1)) <= number < 2 ** (bits - 1):
        raise ValueError(f"{text} does not fit into {bits} bits")
    return number


def _timestamp(shape: Shape, text: str) -> datetime:
    """HTTP's form, ISO 8601 or epoch seconds."""
    try:
        if text.replace(".", "", 1).isdecimal():
            return datetime.fromtimestamp(float(text), UTC)
        return to_utc(text if text[:4].isdecimal() else parsedate_to_datetime(text))
    except (ValueError, OverflowError, OSError):
        raise ValueError(f"{text[:64]!r} is not a timestamp") from None


_SCALARS: dict[str, Callable[[Shape, str], Any]] = {
    "string": lambda shape, text: text,
    "boolean": lambda shape, text: text == "true",
    "blob": lambda shape, text: base64.b64decode(text),
    "timestamp": _timestamp,
    **dict.fromkeys(BITS, _integer),
    **dict.fromkeys(("float", "double"), lambda shape, text: float(text)),
}


# REST ----------------------------------------------------------------------------------------------------------------


def parse_bindings(
    shape: Shape, labels: Mapping[str, str], query: Mapping[str, str], headers: Mapping[str, str]
) -> dict[str, Any]:
    """The members that the shape binds to the path, the query and headers, whose names are in lower case."""
    parsed: dict[str, Any] = {}
    sources = {"uri": labels, "querystring": query, "header": headers}
    for name, member in shape.members.items():
        location, wire_name = member.serialization.get("location"), member.serialization.get("name", name)
        if location == "headers":
            prefix = wire_name.lower()
            parsed[name] = {key[len(prefix) :]: text for key, text in headers.items() if key.startswith(prefix)}
        elif location:
            text = sources[location].get(wire_name.lower() if location == "header" else wire_name)
            if text is not None and member.type_name == "list":
                parsed[name] = [_parse_scalar(member.member, item.strip()) for item in text.split(",")]
            elif text is not None:
                parsed[name] = _parse_scalar(member, _enum_value(member, text) if location == "header" else text)
    return parsed


def _enum_value(shape: Shape, text: str) -> str:
    """The enum's value that a header means: S3 compares them without case (`x-amz-checksum-mode: enabled`)."""
    return next((value for value in shape.metadata.get("enum", ()) if value.lower() == text.lower()), text)


def parse_xml(shape: Shape, element: Element) -> dict[str, Any]:
    """The members of a structure that are elements or attributes; namespaces and unknown elements are ignored."""
    children: dict[str, list[Element]] = {}
    for child in element:
        children.setdefault(_NAMESPACE.sub("", child.tag), []).append(child)
    parsed: dict[str, Any] = {}
    for name, member in shape.members.items():
        traits = member.serialization
        if "location" in traits:
            continue
        is_flat_list = member.type_name == "list" and traits.get("flattened")
        wire_name = (is_flat_list and member.member.serialization.get("name")) or traits.get("name", name)
        if found := children.get(wire_name):
            parsed[name] = _parse_elements(member, found)
        elif traits.get("xmlAttribute"):
            prefix = wire_name.partition(":")[0]
            attributes = {_NAMESPACE.sub(f"{prefix}:", key): text for key, text in element.attrib.items()}
            parsed |= {name: attributes[wire_name]} if wire_name in attributes else {}
    return parsed


def _parse_elements(shape: Shape, elements: Sequence[Element]) -> Any:
    """A member from its elements, of which only a flattened list may have several."""
    if shape.type_name == "list" and shape.serialization.get("flattened"):
        return [_parse_elements(shape.member, [item]) for item in elements]
    if len(elements) > 1:
        raise ValueError(f"the element {elements[0].tag[:128]!r} is there {len(elements)} times")
    if shape.type_name == "list":
        return [_parse_elements(shape.member, [item]) for item in elements[0]]
    if shape.type_name == "structure":
        return parse_xml(shape, elements[0])
    return _parse_scalar(shape, elements[0].text or "")


# Forms of the query protocol -----------------------------------------------------------------------------------------


def parse_form(shape: Shape, fields: Mapping[str, str], prefix: str = "") -> Any:
    """The value whose fields begin with `prefix` (Tags.member.1.Key=...); None where there are none."""
    if shape.type_name == "structure":
        if prefix and not any(name.startswith(prefix) for name in fields):
            return None
        names = {name: member.serialization.get("name", name) for name, member in shape.members.items()}
        parsed = {
            name: value
            for name, member in shape.members.items()
            if (value := parse_form(member, fields, f"{prefix}.{names[name]}" if prefix else names[name])) is not None
        }
        return parsed or None
    if shape.type_name == "list":
        items: list[Any] = []
        item = f"{prefix}.{shape.member.serialization.get('name', 'member')}"
        while (value := parse_form(shape.member, fields, f"{item}.{len(items) + 1}")) is not None:
            items.append(value)
        return items if items or fields.get(prefix) == "" else None
    if shape.type_name == "map":
        return _parse_form_map(shape, fields, prefix)
    text = fields.get(prefix)
    if text is not None and shape.type_name == "boolean":
        text = text.lower()
    return None if text is None else _parse_scalar(shape, text)


def _parse_form_map(shape: Shape, fields: Mapping[str, str], prefix: str) -> dict[str, Any] | None:
    entries: dict[str, Any] = {}
    number = 1
    while (key := fields.get(f"{prefix}.entry.{number}.key")) is not None:
        entries[key] = parse_form(shape.value, fields, f"{prefix}.entry.{number}.value")
        if entries[key] is None:
            raise ValueError(f"{prefix}.entry.{number} has no value")
        number += 1
    return entries or None
