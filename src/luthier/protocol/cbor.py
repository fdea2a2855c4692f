"""CBOR bodies (Smithy's RPC v2), the first protocol of CloudWatch's model: read as JSON's are, written by shape.

Values are read by botocore, whose reader is plain Python: a body nested too deeply is an error, not a crash.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any

from awscrt.cbor import AwsCborEncoder
from botocore.model import Shape
from botocore.parsers import BaseCBORParser, ResponseParserError

from luthier.protocol.errors import WireError
from luthier.protocol.serializer import to_utc

CBOR_TYPE = "application/cbor"


def read(body: bytes) -> Any:
    """The body's value, with datetimes for tagged times; an empty body is an empty map.

    WireError SerializationException for anything that is not one CBOR value.
    """
    if not body:
        return {}
    stream = io.BufferedReader(io.BytesIO(body))
    try:
        value = BaseCBORParser().parse_data_item(stream)
    except (ResponseParserError, ValueError, OverflowError, OSError, TypeError, MemoryError, RecursionError):
        raise WireError("SerializationException", "The body is not CBOR, or nested too deeply.") from None
    if stream.read(1):
        raise WireError("SerializationException", "The body is more than one CBOR value.")
    return value


def write(shape: Shape | None, members: Mapping[str, Any]) -> bytes:
    """The members of a structure as a CBOR map; those that are None or that the shape lacks are left out."""
    encoder = AwsCborEncoder()
    if shape is not None:
        _structure(encoder, shape, members)
    return bytes(encoder.get_encoded_data())


def write_map(fields: Mapping[str, str]) -> bytes:
    """A map of texts, as an error is."""
    encoder = AwsCborEncoder()
    encoder.write_dict(dict(fields))
    return bytes(encoder.get_encoded_data())


def _write(encoder: AwsCborEncoder, shape: Shape, value: Any) -> None:
    _WRITERS.get(shape.type_name, _unchanged)(encoder, shape, value)


def _structure(encoder: AwsCborEncoder, shape: Shape, value: Mapping[str, Any]) -> None:
    present = {name: member for name, member in shape.members.items() if value.get(name) is not None}
    encoder.write_map_start(len(present))
    for name, member in present.items():
        encoder.write_text(member.serialization.get("name", name))
        _write(encoder, member, value[name])


def _list(encoder: AwsCborEncoder, shape: Shape, value: list[Any]) -> None:
    encoder.write_array_start(len(value))
    for item in value:
        _write(encoder, shape.member, item)


def _map(encoder: AwsCborEncoder, shape: Shape, value: Mapping[str, Any]) -> None:
    encoder.write_map_start(len(value))
    for key, entry in value.items():
        encoder.write_text(key)
        _write(encoder, shape.value, entry)


def _unchanged(encoder: AwsCborEncoder, shape: Shape, value: Any) -> None:
    encoder.write_data_item(value)


_WRITERS: dict[str, Callable[[AwsCborEncoder, Shape, Any], None]] = {
    "structure": _structure,
    "list": _list,
    "map": _map,
    "timestamp": lambda encoder, shape, value: encoder.write_epoch_time(to_utc(value).timestamp()),
    "float": lambda encoder, shape, value: encoder.write_float(float(value)),
    "double": lambda encoder, shape, value: encoder.write_float(float(value)),
}
