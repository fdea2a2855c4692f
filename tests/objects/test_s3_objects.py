"""Objects by real boto3: what is put is given back, whole, in part, under conditions, with what was said of it."""

from __future__ import annotations

import base64
import hashlib
import http.client
import io
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from awscrt import checksums as crt
from botocore import xform_name
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from botocore.exceptions import ClientError
from live_wire import KEY, SECRET
from objects.live_objects import LiveObjects


def refused(call: Any, **parameters: Any) -> tuple[str, int]:
    """The code and the status that a call is refused with."""
    with pytest.raises(ClientError) as caught:
        call(**parameters)
    return caught.value.response["Error"]["Code"], caught.value.response["ResponseMetadata"]["HTTPStatusCode"]


def test_an_object_is_given_back_with_all_that_was_said_of_it(s3: Any, bucket: str) -> None:
    said = {
        "CacheControl": "no-cache", "ContentDisposition": 'attachment; filename="a b"', "ContentEncoding": "gzip",
        "ContentLanguage": "de", "ContentType": "text/plain", "Metadata": {"author": "me", "long-name": "x y"},
    }  # fmt: skip
    put = s3.put_object(Bucket=bucket, Key="a", Body=b"bytes", Expires=datetime(2030, 1, 1, tzinfo=UTC), **said)
    got = s3.get_object(Bucket=bucket, Key="a")
    assert got["Body"].read() == b"bytes"
    assert got["ETag"] == put["ETag"] == f'"{hashlib.md5(b"bytes").hexdigest()}"'
    assert {name: got[name] for name in said} == said
    assert got["ContentLength"] == 5
    assert got["AcceptRanges"] == "bytes"
    assert got["ExpiresString"] == "Tue, 01 Jan 2030 00:00:00 GMT"
    head = s3.head_object(Bucket=bucket, Key="a")
    assert {name: head[name] for name in said} == said
    assert (head["ContentLength"], head["ETag"], head["LastModified"]) == (5, put["ETag"], got["LastModified"])
    assert abs((datetime.now(UTC) - head["LastModified"]).total_seconds()) < 60


@pytest.mark.parametrize(
    "key",
    ["ä/ß/日本語.csv", "a b+c%2F&d=e?f#g", "../../etc/passwd", "/leading", "trailing/", "a//b", ".", "..", "🎻",
     "k" * 1024, "~*'()!"],
)  # fmt: skip
def test_any_key_is_a_name_and_never_a_path(s3: Any, live: LiveObjects, bucket: str, key: str) -> None:
    s3.put_object(Bucket=bucket, Key=key, Body=key.encode())
    assert s3.get_object(Bucket=bucket, Key=key)["Body"].read() == key.encode()
    assert [item["Key"] for item in s3.list_objects_v2(Bucket=bucket)["Contents"]] == [key]
    assert [item["Key"] for item in s3.list_objects(Bucket=bucket)["Contents"]] == [key]
    files = [path for path in live.objects.blobs.root.rglob("*") if path.is_file()]
    assert {path.parent.parent.name for path in files} == {"blobs"}
    assert all(set(path.name) <= set("0123456789abcdef") for path in files)
    s3.delete_object(Bucket=bucket, Key=key)
    assert refused(s3.head_object, Bucket=bucket, Key=key) == ("404", 404)


def test_a_key_and_keys_below_it_coexist(s3: Any, bucket: str) -> None:
    for key in ("k", "k/c", "k/c/d", "k/"):
        s3.put_object(Bucket=bucket, Key=key, Body=key.encode())
    assert [s3.get_object(Bucket=bucket, Key=key)["Body"].read() for key in ("k", "k/c", "k/")] == [b"k", b"k/c", b"k/"]


def test_what_is_not_there(s3: Any, bucket: str) -> None:
    assert refused(s3.get_object, Bucket=bucket, Key="no") == ("NoSuchKey", 404)
    assert refused(s3.get_object, Bucket="no-such-bucket", Key="no") == ("NoSuchBucket", 404)
    assert refused(s3.head_object, Bucket="no-such-bucket", Key="no") == ("404", 404)
    assert refused(s3.put_object, Bucket="no-such-bucket", Key="no", Body=b"") == ("NoSuchBucket", 404)
    assert refused(s3.list_objects_v2, Bucket="no-such-bucket") == ("NoSuchBucket", 404)
    assert refused(s3.get_object, Bucket=bucket, Key="no", VersionId="x") == ("NoSuchVersion", 404)
    assert refused(s3.put_object, Bucket=bucket, Key="k" * 1025, Body=b"") == ("KeyTooLongError", 400)
    assert s3.delete_object(Bucket=bucket, Key="no")["ResponseMetadata"]["HTTPStatusCode"] == 204


@pytest.mark.parametrize(
    ("header", "expected", "content_range"),
    [
        ("bytes=0-3", b"0123", "bytes 0-3/10"),
        ("bytes=4-", b"456789", "bytes 4-9/10"),
        ("bytes=-3", b"789", "bytes 7-9/10"),
        ("bytes=-99", b"0123456789", "bytes 0-9/10"),
        ("bytes=8-99", b"89", "bytes 8-9/10"),
        ("bytes=3-1", b"0123456789", None),
        ("bytes=0-1,4-5", b"0123456789", None),
        ("pages=1", b"0123456789", None),
    ],
)
def test_ranges(s3: Any, bucket: str, header: str, expected: bytes, content_range: str | None) -> None:
    s3.put_object(Bucket=bucket, Key="ten", Body=b"0123456789")
    got = s3.get_object(Bucket=bucket, Key="ten", Range=header)
    assert got["Body"].read() == expected
    assert got.get("ContentRange") == content_range
    assert got["ResponseMetadata"]["HTTPStatusCode"] == (206 if content_range else 200)
    assert s3.head_object(Bucket=bucket, Key="ten", Range=header)["ContentLength"] == len(expected)


def test_ranges_that_hold_no_byte(s3: Any, bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="ten", Body=b"0123456789")
    s3.put_object(Bucket=bucket, Key="empty", Body=b"")
    assert refused(s3.get_object, Bucket=bucket, Key="ten", Range="bytes=10-") == ("InvalidRange", 416)
    assert refused(s3.get_object, Bucket=bucket, Key="ten", Range="bytes=-0") == ("InvalidRange", 416)
    assert refused(s3.get_object, Bucket=bucket, Key="empty", Range="bytes=0-") == ("InvalidRange", 416)
    assert s3.get_object(Bucket=bucket, Key="empty")["Body"].read() == b""


def test_overrides_of_an_answer(s3: Any, bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="a", Body=b"x", ContentType="text/plain")
    got = s3.get_object(
        Bucket=bucket, Key="a", ResponseContentType="text/csv", ResponseCacheControl="private",
        ResponseContentDisposition="attachment", ResponseExpires=datetime(2031, 2, 3, tzinfo=UTC),
    )  # fmt: skip
    assert (got["ContentType"], got["CacheControl"], got["ContentDisposition"]) == ("text/csv", "private", "attachment")
    assert got["ExpiresString"] == "Mon, 03 Feb 2031 00:00:00 GMT"


CHECKSUMS: dict[str, Callable[[bytes], bytes]] = {
    "CRC32": lambda data: zlib.crc32(data).to_bytes(4, "big"),
    "CRC32C": lambda data: crt.crc32c(data).to_bytes(4, "big"),
    "CRC64NVME": lambda data: crt.crc64nvme(data).to_bytes(8, "big"),
    "SHA1": lambda data: hashlib.sha1(data).digest(),
    "SHA256": lambda data: hashlib.sha256(data).digest(),
    "SHA512": lambda data: hashlib.sha512(data).digest(),
    "MD5": lambda data: hashlib.md5(data).digest(),
}


@pytest.mark.parametrize("algorithm", CHECKSUMS)
def test_checksums_are_verified_kept_and_given_back(s3: Any, bucket: str, algorithm: str) -> None:
    data = bytes(range(256)) * 700
    value = base64.b64encode(CHECKSUMS[algorithm](data)).decode()
    name = f"Checksum{algorithm}"
    assert s3.put_object(Bucket=bucket, Key="a", Body=data, **{name: value})[name] == value
    got = s3.get_object(Bucket=bucket, Key="a", ChecksumMode="ENABLED")
    assert (got[name], got["ChecksumType"]) == (value, "FULL_OBJECT")
    assert got["Body"].read() == data
    assert s3.head_object(Bucket=bucket, Key="a", ChecksumMode="ENABLED")[name] == value
    assert name not in s3.get_object(Bucket=bucket, Key="a", Range="bytes=0-9", ChecksumMode="ENABLED")
    assert s3.list_objects_v2(Bucket=bucket)["Contents"][0]["ChecksumAlgorithm"] == [algorithm]
    attributes = s3.get_object_attributes(Bucket=bucket, Key="a", ObjectAttributes=["Checksum", "ObjectSize", "ETag"])
    assert (attributes["Checksum"][name], attributes["ObjectSize"]) == (value, len(data))
    wrong = base64.b64encode(CHECKSUMS[algorithm](b"else")).decode()
    assert refused(s3.put_object, Bucket=bucket, Key="b", Body=data, **{name: wrong}) == ("BadDigest", 400)
    assert refused(s3.put_object, Bucket=bucket, Key="b", Body=data, **{name: "?"}) == ("InvalidRequest", 400)
    assert refused(s3.head_object, Bucket=bucket, Key="b") == ("404", 404)


@pytest.mark.parametrize(
    ("operation", "header", "value", "request_members"),
    [
        ("GetObject", "x-amz-checksum-mode", "enabled", {"ChecksumMode": "ENABLED"}),  # the C++ SDK of pyarrow
        ("HeadObject", "x-amz-checksum-mode", "Enabled", {"ChecksumMode": "ENABLED"}),
        ("PutObject", "x-amz-sdk-checksum-algorithm", "crc32", {"Body": b"new", "ChecksumAlgorithm": "CRC32"}),
        ("CreateMultipartUpload", "x-amz-checksum-algorithm", "crc32", {"ChecksumAlgorithm": "CRC32"}),
        ("CreateMultipartUpload", "x-amz-checksum-type", "full_object",
         {"ChecksumAlgorithm": "CRC32", "ChecksumType": "FULL_OBJECT"}),
    ],
)  # fmt: skip
def test_header_values_are_compared_without_case(
    s3: Any, bucket: str, operation: str, header: str, value: str, request_members: dict[str, Any]
) -> None:
    s3.put_object(Bucket=bucket, Key="a", Body=b"content", ChecksumAlgorithm="CRC32")

    def write(params: dict[str, Any], **_: Any) -> None:
        assert params["headers"][header].lower() == value.lower()
        params["headers"][header] = value

    event = f"before-call.s3.{operation}"
    s3.meta.events.register_last(event, write)
    try:
        answer = getattr(s3, xform_name(operation))(Bucket=bucket, Key="a", **request_members)
    finally:
        s3.meta.events.unregister(event, write)
    if operation != "CreateMultipartUpload":
        assert answer["ChecksumCRC32"]
    else:
        assert answer["ChecksumAlgorithm"] == "CRC32"


def test_a_body_that_is_not_what_its_md5_says(s3: Any, bucket: str) -> None:
    right = base64.b64encode(hashlib.md5(b"right").digest()).decode()
    s3.put_object(Bucket=bucket, Key="a", Body=b"right", ContentMD5=right)
    assert refused(s3.put_object, Bucket=bucket, Key="a", Body=b"wrong", ContentMD5=right) == ("BadDigest", 400)
    assert refused(s3.put_object, Bucket=bucket, Key="a", Body=b"wrong", ContentMD5="short") == ("InvalidDigest", 400)
    assert s3.get_object(Bucket=bucket, Key="a")["Body"].read() == b"right"


@pytest.mark.parametrize("encoding", ["gzip", ""])
def test_a_checksum_that_follows_the_body(live: LiveObjects, s3: Any, bucket: str, encoding: str) -> None:
    """A client that speaks TLS, as through the proxy, sends its checksum last."""
    data = b"streamed" * 30000
    value = base64.b64encode(zlib.crc32(data).to_bytes(4, "big")).decode()
    assert _put_with_trailer(live, f"/{bucket}/late", data, value, encoding) == (200, b"")
    got = s3.get_object(Bucket=bucket, Key="late", ChecksumMode="ENABLED")
    assert got["Body"].read() == data
    assert (got["ChecksumCRC32"], got.get("ContentEncoding", "")) == (value, encoding)
    status, answer = _put_with_trailer(live, f"/{bucket}/never", data, "AAAAAA==", encoding)
    assert (status, b"BadDigest" in answer) == (400, True)
    assert refused(s3.head_object, Bucket=bucket, Key="never") == ("404", 404)


def _put_with_trailer(live: LiveObjects, path: str, data: bytes, checksum: str, encoding: str) -> tuple[int, bytes]:
    pieces = [data[at : at + 65536] for at in range(0, len(data), 65536)]
    body = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
    body += f"0\r\nx-amz-checksum-crc32:{checksum}\r\n\r\n".encode()
    headers = {
        "content-encoding": f"{encoding},aws-chunked".lstrip(","), "x-amz-trailer": "x-amz-checksum-crc32",
        "x-amz-decoded-content-length": str(len(data)),
    }  # fmt: skip
    request = AWSRequest("PUT", live.wire.url + path, headers, body)
    request.context["checksum"] = {"request_algorithm": {"in": "trailer"}}
    S3SigV4Auth(Credentials(KEY, SECRET), "s3", "us-east-1").add_auth(request)
    sent = urllib.request.Request(request.url, body, dict(request.headers.items()), method="PUT")
    try:
        with urllib.request.urlopen(sent) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def test_conditional_reads(s3: Any, bucket: str) -> None:
    etag = s3.put_object(Bucket=bucket, Key="a", Body=b"x")["ETag"]
    modified = s3.head_object(Bucket=bucket, Key="a")["LastModified"]
    before = modified - timedelta(seconds=10)
    where = {"Bucket": bucket, "Key": "a"}
    for allowed in ({"IfMatch": etag}, {"IfMatch": "*"}, {"IfNoneMatch": '"no"'}, {"IfModifiedSince": before},
                    {"IfUnmodifiedSince": modified}, {"IfMatch": etag, "IfUnmodifiedSince": before}):  # fmt: skip
        assert s3.get_object(**where, **allowed)["Body"].read() == b"x"
    for refusing in ({"IfMatch": '"no"'}, {"IfUnmodifiedSince": before}):
        assert refused(s3.get_object, **where, **refusing) == ("PreconditionFailed", 412)
        assert refused(s3.head_object, **where, **refusing) == ("412", 412)
    for unchanged in ({"IfNoneMatch": etag}, {"IfModifiedSince": modified},
                      {"IfNoneMatch": etag, "IfModifiedSince": before}):  # fmt: skip
        assert refused(s3.get_object, **where, **unchanged) == ("304", 304)
        assert refused(s3.head_object, **where, **unchanged) == ("304", 304)


def test_conditional_writes(s3: Any, bucket: str) -> None:
    where = {"Bucket": bucket, "Key": "a"}
    assert refused(s3.put_object, **where, Body=b"", IfMatch='"any"') == ("NoSuchKey", 404)
    first = s3.put_object(**where, Body=b"1", IfNoneMatch="*")["ETag"]
    assert refused(s3.put_object, **where, Body=b"2", IfNoneMatch="*") == ("PreconditionFailed", 412)
    assert refused(s3.put_object, **where, Body=b"2", IfMatch='"other"') == ("PreconditionFailed", 412)
    assert refused(s3.put_object, **where, Body=b"2", IfNoneMatch='"x"') == ("NotImplemented", 501)
    second = s3.put_object(**where, Body=b"2", IfMatch=first)["ETag"]
    assert refused(s3.delete_object, **where, IfMatch=first) == ("PreconditionFailed", 412)
    s3.delete_object(**where, IfMatch=second)
    assert refused(s3.head_object, **where) == ("404", 404)


@pytest.mark.parametrize(
    ("operation", "condition", "header"),
    [
        ("put_object", {"IfNoneMatch": "*"}, "If-None-Match"),
        ("put_object", {"IfMatch": '"other"'}, "If-Match"),
        ("get_object", {"IfUnmodifiedSince": datetime(2001, 1, 1, tzinfo=UTC)}, "If-Unmodified-Since"),
        ("copy_object", {"CopySourceIfMatch": '"other"'}, "x-amz-copy-source-If-Match"),
        ("copy_object", {"CopySourceIfModifiedSince": datetime(2100, 1, 1, tzinfo=UTC)},
         "x-amz-copy-source-If-Modified-Since"),
    ],
)  # fmt: skip
def test_a_failed_condition_is_named(
    s3: Any, bucket: str, operation: str, condition: dict[str, Any], header: str
) -> None:
    s3.put_object(Bucket=bucket, Key="a", Body=b"x")
    source = {"CopySource": f"{bucket}/a"} if operation == "copy_object" else {}
    with pytest.raises(ClientError) as caught:
        getattr(s3, operation)(Bucket=bucket, Key="b" if source else "a", **source, **condition)
    assert caught.value.response["Error"]["Condition"] == header


def test_s3_managed_encryption_is_taken(s3: Any, bucket: str) -> None:
    where = {"Bucket": bucket, "Key": "a"}
    s3.put_object(**where, Body=b"x", ServerSideEncryption="AES256")
    s3.copy_object(**where | {"Key": "b"}, CopySource=f"{bucket}/a", ServerSideEncryption="AES256")
    s3.create_multipart_upload(**where, ServerSideEncryption="AES256")
    assert s3.get_object(Bucket=bucket, Key="b")["Body"].read() == b"x"


def test_only_one_of_many_writers_creates(live: LiveObjects, bucket: str) -> None:
    client = live.client()

    def create(number: int) -> str:
        try:
            client.put_object(Bucket=bucket, Key="once", Body=str(number).encode(), IfNoneMatch="*")
        except client.exceptions.ClientError as error:
            return str(error.response["Error"]["Code"])
        return ""

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(create, range(16)))
    won = [number for number, code in enumerate(outcomes) if not code]
    assert set(outcomes) == {"", "PreconditionFailed"}
    assert len(won) == 1
    assert client.get_object(Bucket=bucket, Key="once")["Body"].read() == str(won[0]).encode()
    client.close()


def test_copies(s3: Any, bucket: str) -> None:
    source = {"Bucket": bucket, "Key": "söurce +%"}
    s3.put_object(**source, Body=b"x", ContentType="text/csv", Metadata={"a": "1"}, Tagging="t=1")
    etag = s3.head_object(**source)["ETag"]
    copied = s3.copy_object(Bucket=bucket, Key="kept", CopySource=source)
    assert copied["CopyObjectResult"]["ETag"] == etag
    kept = s3.get_object(Bucket=bucket, Key="kept")
    assert (kept["ContentType"], kept["Metadata"], kept["TagCount"]) == ("text/csv", {"a": "1"}, 1)
    assert kept["Body"].read() == b"x"
    s3.copy_object(
        Bucket=bucket, Key="changed", CopySource=source, MetadataDirective="REPLACE", Metadata={"b": "2"},
        TaggingDirective="REPLACE", Tagging="u=2&v=3", ChecksumAlgorithm="SHA256",
    )  # fmt: skip
    changed = s3.get_object(Bucket=bucket, Key="changed", ChecksumMode="ENABLED")
    assert (changed["ContentType"], changed["Metadata"], changed["TagCount"]) == ("binary/octet-stream", {"b": "2"}, 2)
    assert changed["ChecksumSHA256"] == base64.b64encode(hashlib.sha256(b"x").digest()).decode()
    assert changed["Body"].read() == b"x"
    s3.delete_object(**source)
    assert s3.get_object(Bucket=bucket, Key="kept")["Body"].read() == b"x"


def test_a_copy_to_itself_has_to_change_something(s3: Any, bucket: str) -> None:
    where = {"Bucket": bucket, "Key": "a"}
    s3.put_object(**where, Body=b"x", Metadata={"a": "1"})
    assert refused(s3.copy_object, **where, CopySource=where) == ("InvalidRequest", 400)
    s3.copy_object(**where, CopySource=where, MetadataDirective="REPLACE", Metadata={"b": "2"})
    got = s3.get_object(**where)
    assert (got["Metadata"], got["Body"].read()) == ({"b": "2"}, b"x")


def test_copies_under_conditions_and_of_nothing(s3: Any, bucket: str) -> None:
    source = {"Bucket": bucket, "Key": "a"}
    etag = s3.put_object(**source, Body=b"x")["ETag"]
    to = {"Bucket": bucket, "Key": "b"}
    assert refused(s3.copy_object, **to, CopySource=source, CopySourceIfNoneMatch=etag) == ("PreconditionFailed", 412)
    assert refused(s3.copy_object, **to, CopySource=source, CopySourceIfMatch='"no"') == ("PreconditionFailed", 412)
    assert refused(s3.copy_object, **to, CopySource={"Bucket": bucket, "Key": "no"}) == ("NoSuchKey", 404)
    assert refused(s3.copy_object, **to, CopySource="nothing") == ("InvalidArgument", 400)
    long = {"Bucket": bucket, "Key": "k" * 1025}
    assert refused(s3.copy_object, **long, CopySource=source) == ("KeyTooLongError", 400)
    assert refused(s3.create_multipart_upload, **long) == ("KeyTooLongError", 400)
    s3.copy_object(**to, CopySource=source, CopySourceIfMatch=etag, IfNoneMatch="*")
    assert refused(s3.copy_object, **to, CopySource=source, IfNoneMatch="*") == ("PreconditionFailed", 412)


def test_many_are_deleted_at_once(s3: Any, bucket: str) -> None:
    for key in ("a", "b", "ü"):
        s3.put_object(Bucket=bucket, Key=key, Body=b"")
    done = s3.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": "a"}, {"Key": "ü"}, {"Key": "none"}]})
    assert [entry["Key"] for entry in done["Deleted"]] == ["a", "ü", "none"]
    wanted = [{"Key": "b", "ETag": '"no"'}, {"Key": "b", "VersionId": "1"}, {"Key": "k" * 1025}]
    done = s3.delete_objects(Bucket=bucket, Delete={"Objects": wanted, "Quiet": True})
    assert [entry["Code"] for entry in done["Errors"]] == ["PreconditionFailed", "NoSuchVersion", "KeyTooLongError"]
    assert "Deleted" not in done
    assert [item["Key"] for item in s3.list_objects_v2(Bucket=bucket)["Contents"]] == ["b"]
    many = [{"Key": str(number)} for number in range(1001)]
    assert refused(s3.delete_objects, Bucket=bucket, Delete={"Objects": many}) == ("MalformedXML", 400)


def test_tags(s3: Any, bucket: str) -> None:
    where = {"Bucket": bucket, "Key": "a"}
    s3.put_object(**where, Body=b"", Tagging="project=luthier&empty=&sp%20ace=a%2Bb")
    read = {tag["Key"]: tag["Value"] for tag in s3.get_object_tagging(**where)["TagSet"]}
    assert read == {"project": "luthier", "empty": "", "sp ace": "a+b"}
    tags = [{"Key": "x", "Value": "y"}, {"Key": "empty", "Value": ""}]
    s3.put_object_tagging(**where, Tagging={"TagSet": tags})
    assert s3.get_object_tagging(**where)["TagSet"] == tags
    s3.delete_object_tagging(**where)
    assert s3.get_object_tagging(**where)["TagSet"] == []
    twice = {"TagSet": [{"Key": "x", "Value": "1"}, {"Key": "x", "Value": "2"}]}
    assert refused(s3.put_object_tagging, **where, Tagging=twice) == ("InvalidTag", 400)
    assert refused(s3.put_object_tagging, Bucket=bucket, Key="no", Tagging={"TagSet": []}) == ("NoSuchKey", 404)
    eleven = "&".join(f"k{number}=v" for number in range(11))
    assert refused(s3.put_object, **where, Body=b"", Tagging=eleven)[1] == 400


@pytest.mark.parametrize("version", ["s3", "s3v4"])
def test_presigned_addresses(live: LiveObjects, bucket: str, version: str) -> None:
    client = live.client(config={"signature_version": version})
    put = client.generate_presigned_url("put_object", Params={"Bucket": bucket, "Key": "sent here ü"})
    with closing(http.client.HTTPConnection("127.0.0.1", live.wire.port)) as connection:  # urllib adds a content type
        connection.request("PUT", put.removeprefix(live.wire.url), b"hello")
        assert connection.getresponse().status == 200
    params = {"Bucket": bucket, "Key": "sent here ü", "ResponseContentType": "text/x-test"}
    with urllib.request.urlopen(client.generate_presigned_url("get_object", Params=params)) as answer:
        assert (answer.read(), answer.headers["Content-Type"]) == (b"hello", "text/x-test")
    client.close()


@pytest.mark.parametrize(
    ("member", "value", "code"),
    [
        ("ServerSideEncryption", "aws:kms", "NotImplemented"),
        ("SSEKMSKeyId", "key", "NotImplemented"),
        ("ObjectLockMode", "GOVERNANCE", "NotImplemented"),
        ("ACL", "public-read", "AccessControlListNotSupported"),
        ("GrantRead", "id=1", "AccessControlListNotSupported"),
        ("ExpectedBucketOwner", "999999999999", "AccessDenied"),
        ("ChecksumXXHASH64", "AAAAAAAAAAA=", "NotImplemented"),
        ("Metadata", {"a": "x" * 2100}, "MetadataTooLarge"),
    ],
)
def test_what_cannot_be_done_is_refused(s3: Any, bucket: str, member: str, value: Any, code: str) -> None:
    assert refused(s3.put_object, Bucket=bucket, Key="a", Body=b"x", **{member: value})[0] == code
    assert s3.list_objects_v2(Bucket=bucket)["KeyCount"] == 0


def test_other_words_that_change_nothing_are_taken(s3: Any, bucket: str) -> None:
    s3.put_object(
        Bucket=bucket, Key="a", Body=b"", ACL="bucket-owner-full-control", StorageClass="STANDARD_IA",
        ExpectedBucketOwner="123456789012",
    )  # fmt: skip
    assert s3.head_object(Bucket=bucket, Key="a")["StorageClass"] == "STANDARD_IA"
    assert s3.list_objects_v2(Bucket=bucket)["Contents"][0]["StorageClass"] == "STANDARD_IA"
    [grant] = s3.get_object_acl(Bucket=bucket, Key="a")["Grants"]
    assert grant["Permission"] == "FULL_CONTROL"


def test_eight_threads_write_and_read_one_key(live: LiveObjects, bucket: str) -> None:
    client = live.client(config={"max_pool_connections": 16})
    bodies = [bytes([65 + number]) * (70_000 + number) for number in range(8)]
    stop = time.monotonic() + 1.5
    client.put_object(Bucket=bucket, Key="hot", Body=bodies[0])

    def work(number: int) -> int:
        rounds = 0
        while time.monotonic() < stop:
            if number % 2:
                client.put_object(Bucket=bucket, Key="hot", Body=bodies[number])
            else:
                got = client.get_object(Bucket=bucket, Key="hot")
                data = got["Body"].read()
                assert data in bodies
                assert got["ETag"].strip('"') == hashlib.md5(data).hexdigest()
            rounds += 1
        return rounds

    with ThreadPoolExecutor(8) as pool:
        assert min(pool.map(work, range(8))) > 0
    assert client.get_object(Bucket=bucket, Key="hot")["Body"].read() in bodies
    client.close()


def test_upload_and_download_as_clients_do_it(live: LiveObjects, bucket: str, tmp_path: Any) -> None:
    client = live.client(config={"max_pool_connections": 16})
    data = bytes(range(256)) * (20 * 4096 + 1)
    path = tmp_path / "twenty.bin"
    path.write_bytes(data)
    client.upload_file(str(path), bucket, "big/twenty.bin")
    head = client.head_object(Bucket=bucket, Key="big/twenty.bin")
    assert (head["ContentLength"], head["ETag"].strip('"')[32:]) == (len(data), "-3")
    client.download_file(bucket, "big/twenty.bin", str(tmp_path / "back.bin"))
    assert (tmp_path / "back.bin").read_bytes() == data
    client.copy({"Bucket": bucket, "Key": "big/twenty.bin"}, bucket, "copy")
    across = client.get_object(Bucket=bucket, Key="copy", Range="bytes=8388600-8388615")["Body"].read()
    assert across == data[8388600:8388616]
    stream = io.BytesIO()
    client.download_fileobj(bucket, "copy", stream)
    assert stream.getvalue() == data
    client.close()


def test_the_bucket_may_be_named_in_the_host(s3: Any, live: LiveObjects, bucket: str) -> None:
    """As it is when requests come through the proxy."""
    s3.put_object(Bucket=bucket, Key="a/b", Body=b"x")
    request = AWSRequest("GET", f"http://{bucket}.s3.us-east-1.amazonaws.com/a/b")
    S3SigV4Auth(Credentials(KEY, SECRET), "s3", "us-east-1").add_auth(request)
    headers = {**dict(request.headers.items()), "Host": f"{bucket}.s3.us-east-1.amazonaws.com"}
    with urllib.request.urlopen(urllib.request.Request(live.wire.url + "/a/b", headers=headers)) as answer:
        assert answer.read() == b"x"
