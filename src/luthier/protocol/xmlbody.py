"""Parse XML bodies. Document types are errors: entities expand a kilobyte to gigabytes, and no S3 client needs them."""

from __future__ import annotations

from typing import NoReturn
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from luthier.protocol.errors import WireError

MAX_DEPTH = 64
NAMESPACE_END = "}"


def read(body: bytes) -> Element:
    """The root element, with ElementTree's names ({namespace}name); WireError SerializationException."""
    tree = TreeBuilder()
    depth = 0

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > MAX_DEPTH:
            raise _malformed(f"its elements are nested deeper than {MAX_DEPTH} levels")
        tree.start(_name(name), {_name(key): value for key, value in attributes.items()})

    def end(name: str) -> None:
        nonlocal depth
        depth -= 1
        tree.end(_name(name))

    parser = expat.ParserCreate("utf-8", NAMESPACE_END)
    parser.buffer_text = True
    parser.StartDoctypeDeclHandler = _no_document_type
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = tree.data
    try:
        parser.Parse(body, True)
    except expat.ExpatError as error:
        raise _malformed(f"not well-formed: {error}") from None
    return tree.close()


def _name(name: str) -> str:
    return f"{{{name}" if NAMESPACE_END in name else name


def _no_document_type(name: str, system: str | None, public: str | None, has_subset: int) -> NoReturn:
    raise _malformed("a document type is not allowed")


def _malformed(message: str) -> WireError:
    return WireError("SerializationException", f"The XML you provided is not acceptable: {message}.")
