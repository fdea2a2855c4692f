"""Multipart uploads by real boto3: parts in any order, what a completion checks, checksums, copies of parts."""

from __future__ import annotations

import base64
import hashlib
import zlib
from typing import Any

import pytest
from awscrt import checksums as crt
from botocore.exceptions import ClientError
from objects.live_objects import LiveObjects

FIVE = 5 * 1024**2
PARTS = [b"a" * FIVE, b"b" * (FIVE + 1), b"c" * 10]
WHOLE = b"".join(PARTS)


def refused(call: Any, **parameters: Any) -> tuple[str, int]:
    """The code and the status that a call is refused with."""
    with pytest.raises(ClientError) as caught:
        call(**parameters)
    return caught.value.response["Error"]["Code"], caught.value.response["ResponseMetadata"]["HTTPStatusCode"]


def begin(s3: Any, bucket: str, key: str = "big", **more: Any) -> dict[str, str]:
    """A new upload, as further calls name it."""
    upload = s3.create_multipart_upload(Bucket=bucket, Key=key, **more)["UploadId"]
    return {"Bucket": bucket, "Key": key, "UploadId": upload}


def send(s3: Any, upload: dict[str, str], bodies: dict[int, bytes], **more: Any) -> list[dict[str, Any]]:
    """The parts as a completion lists them, sent from the last to the first."""
    done = {}
    for number in sorted(bodies, reverse=True):
        answer = s3.upload_part(**upload, PartNumber=number, Body=bodies[number], **more)
        kept = {name: value for name, value in answer.items() if name == "ETag" or name.startswith("ChecksumS")}
        done[number] = {"PartNumber": number, **kept}
    return [done[number] for number in sorted(done)]


def test_an_upload_becomes_one_object(s3: Any, bucket: str, live: LiveObjects) -> None:
    upload = begin(s3, bucket, ContentType="text/plain", Metadata={"a": "1"}, Tagging="t=1")
    parts = send(s3, upload, {1: PARTS[0], 5: PARTS[1], 7: PARTS[2], 9: b"unused"})[:3]
    assert refused(s3.head_object, Bucket=bucket, Key="big") == ("404", 404)
    listed = s3.list_parts(**upload, MaxParts=2)
    assert [part["PartNumber"] for part in listed["Parts"]] == [1, 5]
    assert (listed["IsTruncated"], listed["NextPartNumberMarker"]) == (True, 5)
    assert [part["PartNumber"] for part in s3.list_parts(**upload, PartNumberMarker=5)["Parts"]] == [7, 9]
    done = s3.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts})
    digests = b"".join(hashlib.md5(part).digest() for part in PARTS)
    assert done["ETag"] == f'"{hashlib.md5(digests).hexdigest()}-3"'
    assert done["Location"].endswith(f"/{bucket}/big")
    got = s3.get_object(Bucket=bucket, Key="big")
    assert (got["ContentType"], got["Metadata"], got["TagCount"]) == ("text/plain", {"a": "1"}, 1)
    assert got["ETag"] == done["ETag"]
    assert got["Body"].read() == WHOLE
    across = s3.get_object(Bucket=bucket, Key="big", Range=f"bytes={FIVE - 2}-{2 * FIVE + 2}")
    assert across["Body"].read() == WHOLE[FIVE - 2 : 2 * FIVE + 3]
    assert live.objects.sweep() == 0  # the unused part is gone already


def test_a_completion_is_answered_again(s3: Any, bucket: str) -> None:
    upload = begin(s3, bucket)
    parts = send(s3, upload, {1: b"only"})
    first = s3.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts})
    s3.put_object(Bucket=bucket, Key="big", Body=b"newer")
    again = s3.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts})
    assert again["ETag"] == first["ETag"]
    assert s3.get_object(Bucket=bucket, Key="big")["Body"].read() == b"newer"
    other = [{"PartNumber": 1, "ETag": '"' + "0" * 32 + '"'}]
    assert refused(s3.complete_multipart_upload, **upload, MultipartUpload={"Parts": other}) == ("InvalidPart", 400)
    assert refused(s3.upload_part, **upload, PartNumber=2, Body=b"") == ("NoSuchUpload", 404)
    assert refused(s3.abort_multipart_upload, **upload) == ("NoSuchUpload", 404)
    assert refused(s3.list_parts, **upload) == ("NoSuchUpload", 404)


def test_what_a_completion_checks(s3: Any, bucket: str) -> None:
    upload = begin(s3, bucket)
    one, two, three = send(s3, upload, {1: PARTS[0], 2: b"small", 3: b"last"})

    def outcome(*parts: Any, **more: Any) -> str:
        return refused(s3.complete_multipart_upload, **upload, MultipartUpload={"Parts": list(parts)}, **more)[0]

    assert outcome() == "MalformedXML"
    assert outcome(two, one) == "InvalidPartOrder"
    assert outcome(one, one) == "InvalidPartOrder"
    assert outcome(one, two, three) == "EntityTooSmall"
    assert outcome({"PartNumber": 1, "ETag": two["ETag"]}) == "InvalidPart"
    assert outcome({"PartNumber": 1, "ETag": "not hexadecimal"}) == "InvalidPart"
    assert outcome(one, {"PartNumber": 4, "ETag": one["ETag"]}) == "InvalidPart"
    assert outcome(one, MpuObjectSize=7) == "InvalidRequest"
    s3.put_object(Bucket=bucket, Key="big", Body=b"first")
    assert outcome(one, IfNoneMatch="*") == "PreconditionFailed"
    assert s3.get_object(Bucket=bucket, Key="big")["Body"].read() == b"first"
    s3.complete_multipart_upload(**upload, MultipartUpload={"Parts": [one, three]}, MpuObjectSize=FIVE + 4)
    assert s3.head_object(Bucket=bucket, Key="big")["ContentLength"] == FIVE + 4


def test_a_part_can_be_sent_again(s3: Any, bucket: str, live: LiveObjects) -> None:
    upload = begin(s3, bucket)
    send(s3, upload, {1: b"first"})
    parts = send(s3, upload, {1: b"second"})
    assert [part["Size"] for part in s3.list_parts(**upload)["Parts"]] == [6]
    s3.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts})
    assert s3.get_object(Bucket=bucket, Key="big")["Body"].read() == b"second"
    assert live.objects.sweep() == 0


def test_an_aborted_upload_leaves_nothing(s3: Any, bucket: str, live: LiveObjects) -> None:
    before = sum(path.is_file() for path in live.objects.blobs.root.rglob("*"))
    upload = begin(s3, bucket)
    parts = send(s3, upload, {1: b"x", 2: b"y"})
    s3.abort_multipart_upload(**upload)
    assert sum(path.is_file() for path in live.objects.blobs.root.rglob("*")) == before
    for call, more in ((s3.abort_multipart_upload, {}), (s3.upload_part, {"PartNumber": 1, "Body": b""}),
                       (s3.complete_multipart_upload, {"MultipartUpload": {"Parts": parts}})):  # fmt: skip
        assert refused(call, **upload, **more) == ("NoSuchUpload", 404)


def test_wrong_numbers_ids_and_bodies(s3: Any, bucket: str) -> None:
    upload = begin(s3, bucket)
    for number in (0, 10001, -1):
        assert refused(s3.upload_part, **upload, PartNumber=number, Body=b"") == ("InvalidArgument", 400)
    for wrong in ("x", "a" * 32, "../../x"):
        assert refused(s3.upload_part, **{**upload, "UploadId": wrong}, PartNumber=1, Body=b"") == ("NoSuchUpload", 404)
    assert refused(s3.upload_part, **{**upload, "Key": "other"}, PartNumber=1, Body=b"") == ("NoSuchUpload", 404)
    md5 = base64.b64encode(hashlib.md5(b"right").digest()).decode()
    assert refused(s3.upload_part, **upload, PartNumber=1, Body=b"wrong", ContentMD5=md5) == ("BadDigest", 400)
    assert s3.list_parts(**upload).get("Parts", []) == []


@pytest.mark.parametrize(
    ("algorithm", "kind", "digest"),
    [
        ("CRC32", "FULL_OBJECT", lambda data: zlib.crc32(data).to_bytes(4, "big")),
        ("CRC32", "COMPOSITE", lambda data: zlib.crc32(data).to_bytes(4, "big")),
        ("SHA256", "COMPOSITE", lambda data: hashlib.sha256(data).digest()),
        ("CRC64NVME", "FULL_OBJECT", lambda data: crt.crc64nvme(data).to_bytes(8, "big")),
        ("CRC32C", "FULL_OBJECT", lambda data: crt.crc32c(data).to_bytes(4, "big")),
    ],
)
def test_checksums_of_uploads(s3: Any, bucket: str, algorithm: str, kind: str, digest: Any) -> None:
    name = f"Checksum{algorithm}"
    upload = begin(s3, bucket, ChecksumAlgorithm=algorithm, ChecksumType=kind)
    listed = []
    for number, body in enumerate(PARTS, 1):
        value = base64.b64encode(digest(body)).decode()
        answer = s3.upload_part(**upload, PartNumber=number, Body=body, **{name: value})
        assert answer[name] == value
        listed.append({"PartNumber": number, "ETag": answer["ETag"], name: value})
    assert [part[name] for part in s3.list_parts(**upload)["Parts"]] == [part[name] for part in listed]
    wrong = [{**listed[0], name: listed[1][name]}, *listed[1:]]
    assert refused(s3.complete_multipart_upload, **upload, MultipartUpload={"Parts": wrong})[0] == "InvalidPart"
    expected = base64.b64encode(digest(WHOLE)).decode()
    if kind == "COMPOSITE":
        expected = base64.b64encode(digest(b"".join(digest(part) for part in PARTS))).decode() + "-3"
    else:
        nothing = base64.b64encode(digest(b"")).decode()
        more = {name: nothing, "ChecksumType": kind}
        outcome = refused(s3.complete_multipart_upload, **upload, MultipartUpload={"Parts": listed}, **more)
        assert outcome == ("BadDigest", 400)
    done = s3.complete_multipart_upload(**upload, MultipartUpload={"Parts": listed})
    assert (done[name], done["ChecksumType"]) == (expected, kind)
    got = s3.get_object(Bucket=bucket, Key="big", ChecksumMode="ENABLED")
    assert (got[name], got["ChecksumType"]) == (expected, kind)
    assert got["Body"].read() == WHOLE
    attributes = s3.get_object_attributes(Bucket=bucket, Key="big", ObjectAttributes=["ObjectParts"], MaxParts=2)
    shown = attributes["ObjectParts"]
    assert (shown["TotalPartsCount"], shown["IsTruncated"]) == (3, True)
    assert [part[name] for part in shown["Parts"]] == [part[name] for part in listed[:2]]


def test_checksums_that_cannot_be(s3: Any, bucket: str) -> None:
    for algorithm, kind in (("SHA256", "FULL_OBJECT"), ("CRC64NVME", "COMPOSITE")):
        asked = {"ChecksumAlgorithm": algorithm, "ChecksumType": kind}
        assert refused(s3.create_multipart_upload, Bucket=bucket, Key="a", **asked) == ("InvalidRequest", 400)


def test_parts_can_be_read_one_by_one(s3: Any, bucket: str) -> None:
    upload = begin(s3, bucket)
    parts = send(s3, upload, {1: PARTS[0], 2: b"second"})
    s3.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts})
    second = s3.get_object(Bucket=bucket, Key="big", PartNumber=2)
    assert (second["Body"].read(), second["PartsCount"]) == (b"second", 2)
    assert s3.head_object(Bucket=bucket, Key="big", PartNumber=1)["ContentLength"] == FIVE
    assert refused(s3.get_object, Bucket=bucket, Key="big", PartNumber=3)[1] == 416
    s3.put_object(Bucket=bucket, Key="plain", Body=b"x")
    assert s3.get_object(Bucket=bucket, Key="plain", PartNumber=1)["Body"].read() == b"x"
    assert refused(s3.get_object, Bucket=bucket, Key="plain", PartNumber=2)[1] == 416


def test_parts_are_copied_from_objects(s3: Any, bucket: str) -> None:
    source = {"Bucket": bucket, "Key": "source"}
    s3.put_object(**source, Body=WHOLE)
    upload = begin(s3, bucket, "target")
    first = s3.upload_part_copy(**upload, PartNumber=1, CopySource=source, CopySourceRange=f"bytes=1-{FIVE}")
    second = s3.upload_part_copy(**upload, PartNumber=2, CopySource=source)
    etags = [answer["CopyPartResult"]["ETag"] for answer in (first, second)]
    listed = [{"PartNumber": number, "ETag": etag} for number, etag in enumerate(etags, 1)]
    s3.complete_multipart_upload(**upload, MultipartUpload={"Parts": listed})
    assert s3.get_object(Bucket=bucket, Key="target")["Body"].read() == WHOLE[1 : FIVE + 1] + WHOLE
    upload = begin(s3, bucket, "target")
    wrong = {**upload, "PartNumber": 1, "CopySource": source}
    assert refused(s3.upload_part_copy, **wrong, CopySourceRange="bytes=0-999999999")[0] == "InvalidRequest"
    assert refused(s3.upload_part_copy, **wrong, CopySourceRange="bytes=-5")[0] == "InvalidArgument"
    assert refused(s3.upload_part_copy, **wrong, CopySourceIfMatch='"no"')[0] == "PreconditionFailed"


def test_uploads_that_go_on_are_listed(s3: Any, bucket: str) -> None:
    begun = [begin(s3, bucket, key)["UploadId"] for key in ("a", "dir/1", "dir/2", "z", "z")]
    everything = s3.list_multipart_uploads(Bucket=bucket)["Uploads"]
    assert [entry["Key"] for entry in everything] == ["a", "dir/1", "dir/2", "z", "z"]
    assert {entry["UploadId"] for entry in everything} == set(begun)
    folded = s3.list_multipart_uploads(Bucket=bucket, Delimiter="/")
    assert [entry["Prefix"] for entry in folded["CommonPrefixes"]] == ["dir/"]
    assert [entry["Key"] for entry in folded["Uploads"]] == ["a", "z", "z"]
    below = s3.list_multipart_uploads(Bucket=bucket, Prefix="dir/")["Uploads"]
    assert [entry["Key"] for entry in below] == ["dir/1", "dir/2"]
    paged = s3.get_paginator("list_multipart_uploads").paginate(Bucket=bucket, PaginationConfig={"PageSize": 2})
    pages = [[entry["UploadId"] for entry in page["Uploads"]] for page in paged]
    assert [len(page) for page in pages] == [2, 2, 1]
    assert [number for page in pages for number in page] == [entry["UploadId"] for entry in everything]
    folded_pages = s3.get_paginator("list_multipart_uploads").paginate(
        Bucket=bucket, Delimiter="/", PaginationConfig={"PageSize": 1}
    )
    seen = [entry.get("Key") or entry["Prefix"] for page in folded_pages
            for entry in (*page.get("Uploads", []), *page.get("CommonPrefixes", []))]  # fmt: skip
    assert seen == ["a", "dir/", "z", "z"]
