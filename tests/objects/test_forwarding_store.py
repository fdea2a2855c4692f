"""S3 requests that come here for an S3 elsewhere: answered by that one, its refusals too; made-up buckets stay here."""

from __future__ import annotations

import hashlib
import http.client
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import boto3
import pytest
import requests
from botocore.exceptions import ClientError
from live_wire import LiveWire
from moto.server import ThreadedMotoServer
from objects.live_objects import open_objects, serve_objects

from luthier.objects.forwarding_store import ForwardingObjectStore

KEYS = {"aws_access_key_id": "elsewhere", "aws_secret_access_key": "secret"}


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[str]:
    """Somebody else's S3, over HTTP."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    # moto keeps its buckets for the whole process, also those of other files' servers.
    requests.post(f"http://{host}:{port}/moto-api/reset", timeout=30).raise_for_status()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def wire(elsewhere: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LiveWire]:
    """This server's port."""
    for name, value in (("AWS_ACCESS_KEY_ID", "elsewhere"), ("AWS_SECRET_ACCESS_KEY", "s"), ("AWS_REGION", "us-east-1"),
                        ("AWS_DEFAULT_REGION", "us-east-1")):  # fmt: skip
        monkeypatch.setenv(name, value)
    with open_objects(f"sqlite:///{tmp_path / 'made.sqlite'}", tmp_path) as made:
        objects = ForwardingObjectStore(elsewhere, made)
        with serve_objects(objects) as running:
            yield running
        objects.close()


def clients(wire: LiveWire, elsewhere: str) -> tuple[Any, Any]:
    """A client of this port, and one of the S3 elsewhere."""
    there = boto3.client("s3", endpoint_url=elsewhere, region_name="us-east-1", **KEYS)
    return wire.client("s3", region_name="us-east-1"), there


def test_what_is_done_here_is_done_there(wire: LiveWire, elsewhere: str) -> None:
    here, there = clients(wire, elsewhere)
    here.create_bucket(Bucket="room")
    body = bytes(range(256)) * 400
    when = datetime(2030, 1, 2, tzinfo=UTC)
    here.put_object(Bucket="room", Key="a b/ü", Body=body, Metadata={"who": "me"}, ContentType="text/csv", Expires=when)
    found = there.get_object(Bucket="room", Key="a b/ü")
    assert (found["Body"].read(), found["Metadata"], found["ContentType"]) == (body, {"who": "me"}, "text/csv")
    mine = here.get_object(Bucket="room", Key="a b/ü", Range="bytes=1000-1999")
    assert (mine["Body"].read(), mine["ContentRange"]) == (body[1000:2000], f"bytes 1000-1999/{len(body)}")
    assert here.get_object(Bucket="room", Key="a b/ü")["Expires"] == when
    here.copy_object(Bucket="room", Key="copy", CopySource={"Bucket": "room", "Key": "a b/ü"})
    listed = here.list_objects_v2(Bucket="room", Delimiter="/")
    assert [one["Key"] for one in listed["Contents"]] == ["copy"]
    assert [one["Prefix"] for one in listed["CommonPrefixes"]] == ["a b/"]
    assert [one["Name"] for one in here.list_buckets()["Buckets"]] == ["room"]
    assert here.head_object(Bucket="room", Key="copy")["ETag"] == f'"{hashlib.md5(body).hexdigest()}"'
    url = here.generate_presigned_url("get_object", Params={"Bucket": "room", "Key": "copy"})
    with urllib.request.urlopen(url) as answer:
        assert answer.read() == body
    here.delete_objects(Bucket="room", Delete={"Objects": [{"Key": "copy"}, {"Key": "a b/ü"}]})
    assert "Contents" not in there.list_objects_v2(Bucket="room")
    here.delete_bucket(Bucket="room")
    assert there.list_buckets()["Buckets"] == []
    there.close()


def test_an_upload_in_parts_and_a_setting_that_only_the_other_has(wire: LiveWire, elsewhere: str) -> None:
    here, there = clients(wire, elsewhere)
    here.create_bucket(Bucket="parts")
    begun = here.create_multipart_upload(Bucket="parts", Key="big", ChecksumAlgorithm="SHA256")
    part = {"Bucket": "parts", "Key": "big", "UploadId": begun["UploadId"]}
    pieces = [b"x" * (5 << 20), b"end"]
    sent = [
        here.upload_part(**part, PartNumber=number, Body=piece, ChecksumAlgorithm="SHA256")
        for number, piece in enumerate(pieces, 1)
    ]
    listed = [{"PartNumber": number, "ETag": one["ETag"]} for number, one in enumerate(sent, 1)]
    here.complete_multipart_upload(**part, MultipartUpload={"Parts": listed})
    assert there.get_object(Bucket="parts", Key="big")["Body"].read() == b"".join(pieces)
    here.put_bucket_versioning(Bucket="parts", VersioningConfiguration={"Status": "Enabled"})
    assert there.get_bucket_versioning(Bucket="parts")["Status"] == "Enabled"
    there.close()


def test_refusals_are_the_others_own(wire: LiveWire, elsewhere: str) -> None:
    here, there = clients(wire, elsewhere)
    with pytest.raises(ClientError, match=r"\(NoSuchBucket\).*GetObject") as refused:
        here.get_object(Bucket="nobodys", Key="a")
    assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == 404
    with pytest.raises(ClientError, match=r"\(404\)"):
        here.head_bucket(Bucket="nobodys")
    with pytest.raises(ClientError, match=r"AccessDenied|403"):
        here.head_bucket(Bucket="nobodys", ExpectedBucketOwner="999999999999")
    with pytest.raises(ClientError, match="InvalidBucketName"):
        here.copy_object(Bucket="room", Key="a", CopySource="arn:aws:s3:us-east-1:1:accesspoint/x/object/a")
    there.close()


def test_a_body_that_is_not_what_its_checksum_says_never_arrives(wire: LiveWire, elsewhere: str) -> None:
    here, there = clients(wire, elsewhere)
    here.create_bucket(Bucket="sums")
    with pytest.raises(ClientError, match="BadDigest"):
        here.put_object(Bucket="sums", Key="a", Body=b"content", ChecksumCRC32="AAAAAA==")
    assert "Contents" not in there.list_objects_v2(Bucket="sums")
    there.close()


def test_buckets_that_are_made_up_are_answered_here(wire: LiveWire, elsewhere: str) -> None:
    here, there = clients(wire, elsewhere)
    cache = {"Bucket": "jumpstart-cache-prod-us-east-1"}
    assert here.get_object(**cache, Key="specs/a.json")["Body"].read() == b"{}"
    assert len(here.list_objects_v2(**cache)["Contents"]) == 3
    with pytest.raises(ClientError, match="read-only"):
        here.put_object(**cache, Key="a", Body=b"x")
    with pytest.raises(ClientError, match="BucketAlreadyExists"):
        here.create_bucket(**cache)
    assert there.list_buckets()["Buckets"] == here.list_buckets()["Buckets"]
    there.close()


def test_an_s3_that_does_not_answer_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    with open_objects(f"sqlite:///{tmp_path / 'made.sqlite'}", tmp_path) as made:
        objects = ForwardingObjectStore("http://127.0.0.1:9", made)
        with serve_objects(objects) as wire, pytest.raises(ClientError, match="9 does not answer"):
            wire.client("s3").list_buckets()
        objects.close()


def test_a_server_without_credentials_says_so(elsewhere: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with open_objects(f"sqlite:///{tmp_path / 'made.sqlite'}", tmp_path) as made:
        objects = ForwardingObjectStore(elsewhere, made)
        with serve_objects(objects) as wire, pytest.raises(ClientError, match="no credentials for http"):
            wire.client("s3").list_buckets()
        objects.close()


def test_a_reader_who_leaves_gives_the_connection_back(wire: LiveWire, elsewhere: str) -> None:
    here, there = clients(wire, elsewhere)
    here.create_bucket(Bucket="left")
    here.put_object(Bucket="left", Key="a", Body=b"x" * (8 << 20))
    for _ in range(3):
        connection = http.client.HTTPConnection("127.0.0.1", wire.port)
        url = here.generate_presigned_url("get_object", Params={"Bucket": "left", "Key": "a"})
        connection.request("GET", url.removeprefix(wire.url))
        assert connection.getresponse().read(10) == b"x" * 10
        connection.close()
    assert here.get_object(Bucket="left", Key="a")["ContentLength"] == 8 << 20
    there.close()
