"""aws-chunked bodies taken apart, in bounded memory, and refused when they are not what they say."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.protocol.aws_chunked import decode_body
from luthier.protocol.errors import WireError
from luthier.protocol.message import Request

UNSIGNED_TRAILER = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
SIGNED = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"
MARK = b";chunk-signature=" + b"0" * 64


def framed(body: bytes, length: int, kind: str = UNSIGNED_TRAILER, pieces: int = 7) -> Request:
    headers = {
        "x-amz-content-sha256": kind,
        "x-amz-decoded-content-length": str(length),
        "content-encoding": "aws-chunked",
    }
    return Request(
        method="PUT",
        path="/b/k",
        query="",
        headers=headers,
        chunks=(body[at : at + pieces] for at in range(0, len(body), pieces)),
    )


def plain(request: Request) -> bytes:
    decode_body(request)
    return b"".join(request.chunks)


def refusal(request: Request) -> str:
    with pytest.raises(WireError) as caught:
        plain(request)
    assert 400 <= caught.value.status < 500
    return caught.value.code


def test_the_trailer_is_there_when_the_body_has_ended() -> None:
    request = framed(b"5\r\nhello\r\n6\r\n world\r\n0\r\nx-amz-checksum-crc32:DUoRhQ==\r\n\r\n", 11)
    assert plain(request) == b"hello world"
    assert request.trailers == {"x-amz-checksum-crc32": "DUoRhQ=="}
    assert request.headers == {"content-length": "11"}


def test_signed_chunks_are_taken_apart_where_no_key_is_asked_for() -> None:
    body = b"5" + MARK + b"\r\nhello\r\n0" + MARK + b"\r\n\r\n"
    assert plain(framed(body, 5, SIGNED)) == b"hello"


def test_a_second_time_changes_nothing() -> None:
    request = framed(b"2\r\nab\r\n0\r\n\r\n", 2)
    decode_body(request)
    decode_body(request)
    assert b"".join(request.chunks) == b"ab"


def test_the_object_s_own_encoding_stays() -> None:
    request = framed(b"0\r\n\r\n", 0)
    request.headers = {**request.headers, "content-encoding": "aws-chunked, gzip"}
    assert plain(request) == b""
    assert request.headers["content-encoding"] == "gzip"


@pytest.mark.parametrize("end", [b"0\r\n\r\n", b"0\r\n", b"000\r\n\r\n"])
def test_ends_that_clients_send(end: bytes) -> None:
    assert plain(framed(b"1\r\na\r\n" + end, 1)) == b"a"


@pytest.mark.parametrize(
    ("body", "length", "code"),
    [
        (b"", 0, "IncompleteBody"),
        (b"5\r\nhel", 5, "IncompleteBody"),
        (b"5\r\nhello\r\n", 5, "IncompleteBody"),
        (b"5\r\nhello\r\n0\r\n\r\n", 6, "IncompleteBody"),
        (b"5\r\nhello\r\n0\r\n\r\n", 4, "IncompleteBody"),
        (b"5\r\nhello world\r\n0\r\n\r\n", 5, "InvalidRequest"),
        (b"five\r\nhello\r\n0\r\n\r\n", 5, "InvalidRequest"),
        (b"-5\r\nhello\r\n0\r\n\r\n", 5, "InvalidRequest"),
        (b"+5\r\nhello\r\n0\r\n\r\n", 5, "InvalidRequest"),
        (b"5;x=y\r\nhello\r\n0\r\n\r\n", 5, "InvalidRequest"),
        (b"ffffffffffffffff\r\n", 5, "IncompleteBody"),
        (b"fffffffffffffffffffff\r\n", 5, "InvalidRequest"),
        (b"5\r\nhello\r\n0\r\nnot a field\r\n\r\n", 5, "InvalidRequest"),
        (b"5\r\nhello\r\n0\r\n\r\nmore", 5, "InvalidRequest"),
        (b"5" * 20_000, 5, "InvalidRequest"),
        (b"0\r\n" + b"a:b\r\n" * 10_000 + b"\r\n", 0, "InvalidRequest"),
    ],
)
def test_what_is_no_framing(body: bytes, length: int, code: str) -> None:
    assert refusal(framed(body, length)) in (code, "InvalidRequest")


def test_signed_chunks_need_signatures() -> None:
    assert refusal(framed(b"1\r\na\r\n0\r\n\r\n", 1, SIGNED)) == "InvalidRequest"


def test_the_length_must_be_said() -> None:
    request = framed(b"0\r\n\r\n", 0)
    request.headers = {"content-encoding": "aws-chunked"}
    assert refusal(request) == "MissingContentLength"
    request.headers = {"content-encoding": "aws-chunked", "x-amz-decoded-content-length": "1e3"}
    assert refusal(request) == "InvalidArgument"


def test_the_hash_is_checked() -> None:
    good = hashlib.sha256(b"abc").hexdigest()
    assert (
        plain(Request(method="PUT", path="/", headers={"x-amz-content-sha256": good}, chunks=iter([b"a", b"bc"])))
        == b"abc"
    )
    bad = Request(method="PUT", path="/", headers={"x-amz-content-sha256": good}, chunks=iter([b"abd"]))
    assert refusal(bad) == "XAmzContentSHA256Mismatch"


@pytest.mark.parametrize("said", ["", "UNSIGNED-PAYLOAD"])
def test_no_hash_is_no_check(said: str) -> None:
    assert plain(Request(method="PUT", path="/", headers={"x-amz-content-sha256": said}, chunks=iter([b"a"]))) == b"a"


def test_a_hash_that_is_none() -> None:
    assert refusal(Request(method="PUT", path="/", headers={"x-amz-content-sha256": "abc"})) == "InvalidArgument"


@pytest.mark.parametrize("said", ["STREAMING-AWS4-ECDSA-P256-SHA256-PAYLOAD", "STREAMING-", "f" * 63])
def test_a_kind_of_body_that_is_not_known(said: str) -> None:
    assert refusal(framed(b"0\r\n\r\n", 0, said)) == "InvalidArgument"


def test_a_hash_of_the_frames_is_checked_too() -> None:
    body = b"2\r\nab\r\n0\r\n\r\n"
    assert plain(framed(body, 2, hashlib.sha256(body).hexdigest())) == b"ab"
    assert refusal(framed(body, 2, "0" * 64)) == "XAmzContentSHA256Mismatch"


def test_a_chunk_is_not_held() -> None:
    passed = 0

    def source() -> Iterator[bytes]:
        yield b"%x\r\n" % (64 << 20)
        for _ in range(64):
            yield b"x" * (1 << 20)
        yield b"\r\n0\r\n\r\n"

    request = framed(b"", 64 << 20)
    request.chunks = source()
    decode_body(request)
    for piece in request.chunks:
        assert len(piece) <= 1 << 20
        passed += len(piece)
    assert passed == 64 << 20


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=50), max_size=8), st.integers(1, 30), st.booleans())
def test_every_framing_gives_its_body_back(parts: list[bytes], pieces: int, trailer: bool) -> None:
    body = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n"
    body += b"x-amz-checksum-crc32:aaaaaa==\r\n\r\n" if trailer else b"\r\n"
    request = framed(body, sum(map(len, parts)), pieces=pieces)
    assert plain(request) == b"".join(parts)
    assert bool(request.trailers) == trailer


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.sampled_from([b"0", b"1", b"a", b"\r\n", b"\r", b"\n", b";", b"x:y", b"=", b"ffff", b"\x00"])),
    st.integers(0, 9),
)
def test_nothing_else_comes_out_of_any_bytes(parts: list[bytes], length: int) -> None:
    with suppress(WireError):
        assert len(plain(framed(b"".join(parts), length))) == length
