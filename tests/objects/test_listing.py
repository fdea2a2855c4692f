"""Lists against a plain model: pages of any size, every prefix and delimiter, and the paginators of boto3."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from objects.live_objects import LiveObjects

from luthier.objects import listing
from luthier.objects.queries import StoredObject
from luthier.objects.store import EmbeddedObjectStore
from luthier.objects.tables import objects as table
from luthier.protocol.errors import WireError

ALPHABET = ["a", "b", "/", "//", "ä", "\x01", "~", "\U0001f3bb", "\uffff", "-"]
KEYS = st.lists(st.lists(st.sampled_from(ALPHABET), min_size=1, max_size=5).map("".join), max_size=40, unique=True)
PIECE = st.lists(st.sampled_from(ALPHABET), max_size=2).map("".join)


def made(key: str) -> StoredObject:
    return StoredObject(bucket="b", key=key, content="", size=0, etag="", modified=0.0)


def expected(keys: Sequence[str], prefix: str, delimiter: str) -> list[str]:
    """All keys and folded prefixes, as S3 describes them."""
    found: list[str] = []
    for key in sorted(keys, key=lambda key: key.encode()):
        if not key.startswith(prefix):
            continue
        head, cut, _ = key[len(prefix) :].partition(delimiter) if delimiter else (key, "", "")
        entry = prefix + head + cut if cut else key
        if entry not in found:
            found.append(entry)
    return found


def in_memory(keys: Sequence[str]) -> listing.Fetch:
    known = sorted((key.encode(), key) for key in keys)

    def fetch(start: bytes, end: bytes | None, limit: int) -> list[StoredObject]:
        return [made(key) for encoded, key in known if start <= encoded and (end is None or encoded < end)][:limit]

    return fetch


def names(page: listing.KeyPage) -> list[str]:
    return [entry.key if isinstance(entry, StoredObject) else entry for entry in page.entries]


@given(keys=KEYS, prefix=PIECE, delimiter=PIECE, limit=st.integers(1, 7), marked=st.booleans())
@settings(max_examples=400, deadline=None)
def test_pages_are_the_whole_in_order(keys: list[str], prefix: str, delimiter: str, limit: int, marked: bool) -> None:
    """By tokens (version 2) and by markers (version 1) alike."""
    found: list[str] = []
    start: bytes | None = b""
    while start is not None:
        page = listing.page(in_memory(keys), prefix.encode(), delimiter.encode(), start, limit)
        assert len(page.entries) <= limit
        assert page.following is None or len(page.entries) == limit
        found += names(page)
        start = page.following
        if marked and start is not None:
            start = listing.after(found[-1].encode(), prefix.encode(), delimiter.encode())
        elif start is not None:
            start = listing.from_token(listing.to_token(start))
    assert found == expected(keys, prefix, delimiter)


@given(keys=KEYS, marker=PIECE, prefix=PIECE)
def test_a_list_starts_after_its_marker(keys: list[str], marker: str, prefix: str) -> None:
    page = listing.page(
        in_memory(keys), prefix.encode(), b"", listing.after(marker.encode(), prefix.encode(), b""), 1000
    )
    later = [key for key in expected(keys, prefix, "") if key.encode() > marker.encode()]
    assert names(page) == later


def test_a_page_of_nothing_is_the_last() -> None:
    assert listing.page(in_memory(["a"]), b"", b"", b"", 0) == listing.KeyPage([])


def test_a_folded_folder_costs_one_step() -> None:
    keys = [f"{folder}/{number:05}" for folder in "abcdef" for number in range(1000)]
    asked: list[int] = []
    fetch = in_memory(keys)

    def counted(start: bytes, end: bytes | None, limit: int) -> Sequence[StoredObject]:
        asked.append(limit)
        return fetch(start, end, limit)

    assert names(listing.page(counted, b"", b"/", b"", 1000)) == [f"{folder}/" for folder in "abcdef"]
    assert sum(asked) < 600


@pytest.mark.parametrize("token", ["", "x", "ä", "AAAA", "=="])
def test_tokens_of_others_are_refused(token: str) -> None:
    with pytest.raises(WireError) as caught:
        listing.from_token(token)
    assert caught.value.code == "InvalidArgument"


def fill(objects: EmbeddedObjectStore, bucket: str, keys: Sequence[str]) -> None:
    """Objects of these keys, all of one content, in one transaction."""
    one = objects.put(bucket, keys[0], [b"x"])
    row = {"bucket": bucket, "content": one.content, "size": 1, "etag": one.etag, "modified": time.time(), "parts": 0,
           "attributes": {}, "metadata": {}, "tags": {}, "checksum": []}  # fmt: skip
    with objects.database.write() as connection:
        connection.execute(table.insert(), [row | {"key": key.encode()} for key in keys[1:]])


def test_both_databases_sort_and_cut_like_the_model(objects: EmbeddedObjectStore) -> None:
    seconds = [*ALPHABET, *"xyzABC", "é", "\x7f", "\0", "a/"]
    keys = ["".join(pair) for pair in zip(ALPHABET * 10, seconds * 5, strict=True)]
    keys = [*dict.fromkeys(keys), "plain", "PLAIN", "a" * 1024]
    fill(objects, "room", keys)
    for prefix in ("", "a", "a/", "/", "ä", "\U0001f3bb", "none"):
        for delimiter in ("", "/", "a", "é"):
            found: list[str] = []
            start: bytes | None = b""
            while start is not None:
                page = objects.page("room", prefix, delimiter, start, 9)
                found, start = found + names(page), page.following
            assert found == expected(keys, prefix, delimiter)


def test_paginators_of_boto3(live: LiveObjects, s3: Any, bucket: str) -> None:
    keys = [f"data/{number % 11:02}/file {number:04}+&.csv" for number in range(1090)]
    keys += ["top.txt", "data/readme", "dätä/ü", *(f"x{number}" for number in range(7))]
    fill(live.objects, bucket, keys)
    for operation in ("list_objects", "list_objects_v2"):
        paginate = s3.get_paginator(operation).paginate
        for more in ({}, {"PaginationConfig": {"PageSize": 300}}):
            pages = list(paginate(Bucket=bucket, **more))
            assert [item["Key"] for page in pages for item in page["Contents"]] == expected(keys, "", "")
        for size in (1, 3, 1000):
            pages = list(paginate(Bucket=bucket, Prefix="data/", Delimiter="/", PaginationConfig={"PageSize": size}))
            folded = [entry["Prefix"] for page in pages for entry in page.get("CommonPrefixes", [])]
            plain = [item["Key"] for page in pages for item in page.get("Contents", [])]
            assert sorted(folded + plain) == sorted(expected(keys, "data/", "/"))
    encoded = s3.list_objects_v2(Bucket=bucket, EncodingType="url", Prefix="dätä/", Delimiter="ü")
    assert encoded["CommonPrefixes"] == [{"Prefix": "d%C3%A4t%C3%A4/%C3%BC"}]  # what is asked for is not decoded
    first = s3.list_objects_v2(Bucket=bucket)
    assert (first["KeyCount"], first["IsTruncated"], first["MaxKeys"]) == (1000, True, 1000)
    assert "Owner" not in first["Contents"][0]
    assert s3.list_objects_v2(Bucket=bucket, FetchOwner=True)["Contents"][0]["Owner"]["ID"]
    after = s3.list_objects_v2(Bucket=bucket, StartAfter="top.txt")
    assert [item["Key"] for item in after["Contents"]] == [f"x{number}" for number in range(7)]
    assert s3.list_objects_v2(Bucket=bucket, MaxKeys=0)["KeyCount"] == 0
    versions = [entry for page in s3.get_paginator("list_object_versions").paginate(Bucket=bucket)
                for entry in page["Versions"]]  # fmt: skip
    assert [entry["Key"] for entry in versions] == expected(keys, "", "")
    assert {entry["VersionId"] for entry in versions} == {"null"}
