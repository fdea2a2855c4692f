"""XML bodies: elements, and nothing that expands."""

from __future__ import annotations

import pytest

from luthier.protocol import xmlbody
from luthier.protocol.errors import WireError


def test_elements_with_and_without_a_namespace() -> None:
    root = xmlbody.read('<?xml version="1.0"?><a xmlns="urn:x" k="v"><b>1 &amp; ü&#65;</b><b/></a>'.encode())
    assert root.tag == "{urn:x}a"
    assert [(child.tag, child.text) for child in root] == [("{urn:x}b", "1 & üA"), ("{urn:x}b", None)]
    assert xmlbody.read(b"<a><b/></a>")[0].tag == "b"


BOMB = b'<!DOCTYPE a [<!ENTITY x "ha"><!ENTITY y "&x;&x;">]><a>&y;</a>'


@pytest.mark.parametrize(
    "body",
    [
        b"", b"text", b"<a>", b"<a></b>", b"<a/><b/>", b"\xff\xfe<a/>", b"<a>\x00</a>", b"<a>&x;</a>", b"<a b=c/>",
        BOMB,
        b'<!DOCTYPE a SYSTEM "file:///etc/passwd"><a/>', b"<!DOCTYPE a><a/>", b"<a>" * 100_000,
        b"<a>" * 100 + b"</a>" * 100, "<a>\ud800</a>".encode("utf-8", "surrogatepass"), b"<x:a/>" * 2,
    ],
)  # fmt: skip
def test_what_is_refused(body: bytes) -> None:
    with pytest.raises(WireError) as caught:
        xmlbody.read(body)
    assert caught.value.code == "SerializationException"


def test_another_encoding_hides_no_document_type() -> None:
    with pytest.raises(WireError):
        xmlbody.read(BOMB.decode().encode("utf-16"))
