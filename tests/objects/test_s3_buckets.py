"""Buckets by real boto3: names, owners, regions, what they can be set to, and the read-only ones."""

from __future__ import annotations

from typing import Any

import pytest
from botocore.exceptions import ClientError
from objects.live_objects import LiveObjects

from luthier.objects.names import check_bucket_name
from luthier.protocol.errors import WireError


def refused(call: Any, **parameters: Any) -> tuple[str, int]:
    """The code and the status that a call is refused with."""
    with pytest.raises(ClientError) as caught:
        call(**parameters)
    return caught.value.response["Error"]["Code"], caught.value.response["ResponseMetadata"]["HTTPStatusCode"]


def test_a_bucket_from_birth_to_death(s3: Any) -> None:
    assert refused(s3.head_bucket, Bucket="of-my-own") == ("404", 404)
    assert s3.create_bucket(Bucket="of-my-own")["Location"] == "/of-my-own"
    s3.head_bucket(Bucket="of-my-own")
    assert "of-my-own" in [bucket["Name"] for bucket in s3.list_buckets()["Buckets"]]
    s3.put_object(Bucket="of-my-own", Key="a", Body=b"")
    assert refused(s3.delete_bucket, Bucket="of-my-own") == ("BucketNotEmpty", 409)
    s3.delete_object(Bucket="of-my-own", Key="a")
    upload = s3.create_multipart_upload(Bucket="of-my-own", Key="a")["UploadId"]
    s3.upload_part(Bucket="of-my-own", Key="a", UploadId=upload, PartNumber=1, Body=b"x")
    s3.delete_bucket(Bucket="of-my-own")
    assert refused(s3.head_bucket, Bucket="of-my-own") == ("404", 404)
    assert refused(s3.delete_bucket, Bucket="of-my-own") == ("NoSuchBucket", 404)


def test_creating_again_is_as_forgiving_as_s3(live: LiveObjects) -> None:
    east, west = live.client(), live.client(region_name="us-west-2")
    east.create_bucket(Bucket="twice-east")
    east.create_bucket(Bucket="twice-east")
    there = {"LocationConstraint": "us-west-2"}
    west.create_bucket(Bucket="twice-west", CreateBucketConfiguration=there)
    again = refused(west.create_bucket, Bucket="twice-west", CreateBucketConfiguration=there)
    assert again == ("BucketAlreadyOwnedByYou", 409)
    assert east.get_bucket_location(Bucket="twice-east")["LocationConstraint"] is None
    assert east.get_bucket_location(Bucket="twice-west")["LocationConstraint"] == "us-west-2"
    assert east.head_bucket(Bucket="twice-west")["BucketRegion"] == "us-west-2"
    live.objects.create_bucket("somebody-elses", "999999999999", "us-east-1")
    assert refused(east.create_bucket, Bucket="somebody-elses") == ("BucketAlreadyExists", 409)
    assert refused(east.head_bucket, Bucket="somebody-elses") == ("403", 403)
    assert refused(east.get_object, Bucket="somebody-elses", Key="a") == ("AccessDenied", 403)
    assert "somebody-elses" not in [bucket["Name"] for bucket in east.list_buckets()["Buckets"]]
    east.close()
    west.close()


def test_lists_of_buckets_come_in_pages(live: LiveObjects) -> None:
    client = live.client()
    for number in range(5):
        client.create_bucket(Bucket=f"paged-{number}")
    pages = list(client.get_paginator("list_buckets").paginate(Prefix="paged-", PaginationConfig={"PageSize": 2}))
    assert [[bucket["Name"] for bucket in page["Buckets"]] for page in pages] == [
        ["paged-0", "paged-1"], ["paged-2", "paged-3"], ["paged-4"],
    ]  # fmt: skip
    assert client.list_buckets(Prefix="paged-", BucketRegion="eu-west-1").get("Buckets", []) == []
    client.close()


@pytest.mark.parametrize("name", ["abc", "a.b-c", "1-2", "x" * 63, "sagemaker-us-east-1-123456789012"])
def test_names_that_s3_takes(name: str) -> None:
    assert check_bucket_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["", "ab", "x" * 64, "Abc", "a_b", "-ab", "ab-", "a..b", "192.168.0.1", "xn--abc", "abc-s3alias", "_luthier", "a/b",
     "a\0b", "../a", "ä-b-c"],
)  # fmt: skip
def test_names_that_s3_refuses(name: str) -> None:
    with pytest.raises(WireError) as caught:
        check_bucket_name(name)
    assert caught.value.code == "InvalidBucketName"


@pytest.mark.parametrize(
    ("operation", "code"),
    [
        ("get_bucket_policy", "NoSuchBucketPolicy"),
        ("get_bucket_cors", "NoSuchCORSConfiguration"),
        ("get_bucket_lifecycle_configuration", "NoSuchLifecycleConfiguration"),
        ("get_bucket_website", "NoSuchWebsiteConfiguration"),
        ("get_bucket_tagging", "NoSuchTagSet"),
        ("get_bucket_replication", "ReplicationConfigurationNotFoundError"),
        ("get_object_lock_configuration", "ObjectLockConfigurationNotFoundError"),
    ],
)
def test_what_a_bucket_is_not_set_to(s3: Any, bucket: str, operation: str, code: str) -> None:
    assert refused(getattr(s3, operation), Bucket=bucket) == (code, 404)
    assert refused(getattr(s3, operation), Bucket="no-such-bucket") == ("NoSuchBucket", 404)


def test_what_every_bucket_answers(s3: Any, bucket: str) -> None:
    where = {"Bucket": bucket}
    assert "Status" not in s3.get_bucket_versioning(**where)
    assert s3.get_bucket_acl(**where)["Grants"][0]["Permission"] == "FULL_CONTROL"
    assert s3.get_bucket_request_payment(**where)["Payer"] == "BucketOwner"
    rules = s3.get_bucket_ownership_controls(**where)["OwnershipControls"]["Rules"]
    assert rules == [{"ObjectOwnership": "BucketOwnerEnforced"}]
    assert set(s3.get_public_access_block(**where)["PublicAccessBlockConfiguration"].values()) == {True}
    (rule,) = s3.get_bucket_encryption(**where)["ServerSideEncryptionConfiguration"]["Rules"]
    assert rule["ApplyServerSideEncryptionByDefault"] == {"SSEAlgorithm": "AES256"}
    for name in ("get_bucket_logging", "get_bucket_notification_configuration", "get_bucket_accelerate_configuration",
                 "delete_bucket_policy", "delete_bucket_cors", "delete_bucket_tagging"):  # fmt: skip
        assert getattr(s3, name)(**where)["ResponseMetadata"]["HTTPStatusCode"] in (200, 204)


def test_what_a_bucket_cannot_be_set_to_is_said(s3: Any, bucket: str) -> None:
    on = {"Status": "Enabled"}
    assert refused(s3.put_bucket_versioning, Bucket=bucket, VersioningConfiguration=on) == ("NotImplemented", 501)
    assert refused(s3.put_bucket_policy, Bucket=bucket, Policy="{}") == ("NotImplemented", 501)
    assert refused(s3.create_bucket, Bucket="locked", ObjectLockEnabledForBucket=True) == ("NotImplemented", 501)
    assert refused(s3.create_bucket, Bucket="public", ACL="public-read")[0] == "AccessControlListNotSupported"


def test_read_only_buckets(live: LiveObjects, s3: Any, bucket: str) -> None:
    cache = {"Bucket": "jumpstart-cache-prod-eu-central-1"}
    s3.head_bucket(**cache)
    first = s3.get_object(**cache, Key="models_manifest.json")
    assert (first["Body"].read(), first["ContentType"]) == (b"[]", "application/json")
    assert s3.head_object(**cache, Key="models_manifest.json")["ETag"] == first["ETag"]
    assert s3.get_object(**cache, Key="specs/b.json", Range="bytes=0-3")["Body"].read() == b'{"b"'
    listed = s3.list_objects_v2(**cache, Delimiter="/")
    assert [item["Key"] for item in listed["Contents"]] == ["models_manifest.json"]
    assert [item["Prefix"] for item in listed["CommonPrefixes"]] == ["specs/"]
    assert len(s3.list_objects(**cache, Prefix="specs/")["Contents"]) == 2
    assert refused(s3.get_object, **cache, Key="no") == ("NoSuchKey", 404)
    s3.copy_object(Bucket=bucket, Key="mine", CopySource={**cache, "Key": "specs/a.json"}, ChecksumAlgorithm="SHA1")
    assert s3.get_object(Bucket=bucket, Key="mine", ChecksumMode="ENABLED")["Body"].read() == b"{}"
    assert refused(s3.put_object, **cache, Key="x", Body=b"") == ("AccessDenied", 403)
    assert refused(s3.delete_object, **cache, Key="specs/a.json") == ("AccessDenied", 403)
    mine = {"Bucket": bucket, "Key": "mine"}
    assert refused(s3.copy_object, **cache, Key="x", CopySource=mine) == ("AccessDenied", 403)
    assert refused(s3.create_multipart_upload, **cache, Key="x") == ("AccessDenied", 403)
    assert refused(s3.delete_bucket, **cache) == ("AccessDenied", 403)
    assert refused(s3.create_bucket, **cache) == ("BucketAlreadyExists", 409)
    assert cache["Bucket"] not in [found["Name"] for found in s3.list_buckets()["Buckets"]]
