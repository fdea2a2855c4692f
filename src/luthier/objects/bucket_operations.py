"""S3's operations on buckets, and on what a bucket can be set to: here nothing, which each is told as S3 tells it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luthier.objects import listing
from luthier.objects.errors import refusal
from luthier.objects.object_operations import full_control
from luthier.objects.parameters import Operation, allowed, moment, owner, store_of
from luthier.objects.queries import Bucket
from luthier.objects.store import ObjectStore
from luthier.protocol.call import GLOBAL_REGION, Call

LOCATIONS = {"EU": "eu-west-1", "": GLOBAL_REGION}
MOST_BUCKETS = 10_000


def create_bucket(call: Call, objects: ObjectStore) -> dict[str, Any]:
    """The region is the one that is asked for, else that of the request."""
    asked = call.parameters.get("CreateBucketConfiguration") or {}
    for name in ("Location", "Bucket", "Tags"):
        if asked.get(name):
            raise refusal("NotImplemented", f"CreateBucketConfiguration.{name}: only LocationConstraint is offered")
    if call.parameters.get("BucketNamespace", "global") != "global":
        raise refusal("NotImplemented", "BucketNamespace: only global is offered")
    constraint = asked.get("LocationConstraint") or ""
    region = LOCATIONS.get(constraint, constraint) if constraint else call.region
    made = store_of(objects).create_bucket(call.parameters["Bucket"], call.account, region)
    return {"Location": f"/{made.name}", "BucketArn": _arn(made.name)}


def delete_bucket(call: Call, objects: ObjectStore) -> dict[str, Any]:
    store = store_of(objects)
    name = allowed(call, store)
    store.writable(name)
    store.delete_bucket(name)
    return {}


def head_bucket(call: Call, objects: ObjectStore) -> dict[str, Any]:
    found = _bucket(call, objects)
    return {"BucketRegion": found.region, "BucketArn": _arn(found.name), "AccessPointAlias": False}


def get_bucket_location(call: Call, objects: ObjectStore) -> dict[str, Any]:
    region = _bucket(call, objects).region
    return {"LocationConstraint": "" if region == GLOBAL_REGION else region}


def _bucket(call: Call, objects: ObjectStore) -> Bucket:
    """The bucket asked for; a virtual one is of whatever region it is asked in."""
    store = store_of(objects)
    name = allowed(call, store)
    return Bucket(name, call.account, call.region, 0.0) if store.virtual(name) else store.bucket(name)


def list_buckets(call: Call, objects: ObjectStore) -> dict[str, Any]:
    parameters = call.parameters
    prefix, region = parameters.get("Prefix") or "", parameters.get("BucketRegion")
    limit, token = parameters.get("MaxBuckets") or MOST_BUCKETS, parameters.get("ContinuationToken")
    after = listing.from_token(token).decode("utf-8", "replace") if token else ""
    found = [
        bucket for bucket in store_of(objects).buckets(call.account)
        if bucket.name.startswith(prefix) and bucket.name > after and region in (None, bucket.region)
    ]  # fmt: skip
    listed = found[:limit]
    answer: dict[str, Any] = {
        "Owner": owner(call.account),
        "Buckets": [
            {"Name": bucket.name, "CreationDate": moment(bucket.created), "BucketRegion": bucket.region,
             "BucketArn": _arn(bucket.name)}
            for bucket in listed
        ],
    }  # fmt: skip
    if prefix:
        answer["Prefix"] = prefix
    if len(found) > len(listed):
        answer["ContinuationToken"] = listing.to_token(listed[-1].name.encode())
    return answer


def _arn(name: str) -> str:
    return f"arn:aws:s3:::{name}"


def get_bucket_acl(call: Call, objects: ObjectStore) -> dict[str, Any]:
    allowed(call, store_of(objects))
    return full_control(call.account)


def _answered(answer: Mapping[str, Any]) -> Operation:
    """The operation that finds a bucket set to nothing, and says so by `answer`."""

    def operation(call: Call, objects: ObjectStore) -> dict[str, Any]:
        allowed(call, store_of(objects))
        return dict(answer)

    return operation


def _missing(code: str, message: str) -> Operation:
    """The operation that finds a bucket set to nothing, and says so by a 404."""

    def operation(call: Call, objects: ObjectStore) -> dict[str, Any]:
        allowed(call, store_of(objects))
        raise refusal(code, message, 404)

    return operation


def _not_offered(call: Call, objects: ObjectStore) -> dict[str, Any]:
    allowed(call, store_of(objects))
    raise refusal("NotImplemented", f"{call.operation}: this server's object store does not offer it")


_NO_LOCK = "The specified object does not have a ObjectLock configuration"
_UNSET: Mapping[str, tuple[str, str]] = {
    "GetBucketPolicy": ("NoSuchBucketPolicy", "The bucket policy does not exist"),
    "GetBucketPolicyStatus": ("NoSuchBucketPolicy", "The bucket policy does not exist"),
    "GetBucketCors": ("NoSuchCORSConfiguration", "The CORS configuration does not exist"),
    "GetBucketLifecycleConfiguration": ("NoSuchLifecycleConfiguration", "The lifecycle configuration does not exist"),
    "GetBucketWebsite": ("NoSuchWebsiteConfiguration", "The specified bucket does not have a website configuration"),
    "GetBucketTagging": ("NoSuchTagSet", "The TagSet does not exist"),
    "GetBucketReplication": ("ReplicationConfigurationNotFoundError", "The replication configuration was not found"),
    "GetBucketEncryption": ("ServerSideEncryptionConfigurationNotFoundError",
                            "The server side encryption configuration was not found"),
    "GetPublicAccessBlock": ("NoSuchPublicAccessBlockConfiguration",
                             "The public access block configuration was not found"),
    "GetObjectLockConfiguration": ("ObjectLockConfigurationNotFoundError",
                                   "Object Lock configuration does not exist for this bucket"),
    "GetObjectRetention": ("NoSuchObjectLockConfiguration", _NO_LOCK),
    "GetObjectLegalHold": ("NoSuchObjectLockConfiguration", _NO_LOCK),
}  # fmt: skip

_EMPTY: Mapping[str, Mapping[str, Any]] = {
    "GetBucketVersioning": {},
    "GetBucketLogging": {},
    "GetBucketNotificationConfiguration": {},
    "GetBucketAccelerateConfiguration": {},
    "GetBucketRequestPayment": {"Payer": "BucketOwner"},
    "GetBucketOwnershipControls": {"OwnershipControls": {"Rules": [{"ObjectOwnership": "BucketOwnerEnforced"}]}},
    "ListBucketAnalyticsConfigurations": {"IsTruncated": False},
    "ListBucketIntelligentTieringConfigurations": {"IsTruncated": False},
    "ListBucketInventoryConfigurations": {"IsTruncated": False},
    "ListBucketMetricsConfigurations": {"IsTruncated": False},
    # What is not set is deleted by doing nothing, on S3 too.
    "DeleteBucketPolicy": {},
    "DeleteBucketCors": {},
    "DeleteBucketLifecycle": {},
    "DeleteBucketWebsite": {},
    "DeleteBucketTagging": {},
    "DeleteBucketReplication": {},
    "DeleteBucketEncryption": {},
    "DeletePublicAccessBlock": {},
}

NOT_OFFERED = (
    "PutBucketVersioning", "PutBucketEncryption", "PutBucketPolicy", "PutBucketCors", "PutBucketLifecycleConfiguration",
    "PutBucketWebsite", "PutBucketTagging", "PutBucketReplication", "PutPublicAccessBlock",
    "PutObjectLockConfiguration", "PutObjectRetention", "PutObjectLegalHold", "PutBucketLogging",
    "PutBucketNotificationConfiguration", "PutBucketAccelerateConfiguration", "PutBucketRequestPayment",
    "PutBucketOwnershipControls", "PutBucketAcl",
    "PutObjectAcl", "DeleteBucketOwnershipControls", "SelectObjectContent", "RestoreObject", "GetObjectTorrent",
    "RenameObject",
)  # fmt: skip

OPERATIONS: Mapping[str, Operation] = {
    "CreateBucket": create_bucket,
    "DeleteBucket": delete_bucket,
    "HeadBucket": head_bucket,
    "GetBucketLocation": get_bucket_location,
    "ListBuckets": list_buckets,
    "GetBucketAcl": get_bucket_acl,
    **{name: _missing(*said) for name, said in _UNSET.items()},
    **{name: _answered(answer) for name, answer in _EMPTY.items()},
    **dict.fromkeys(NOT_OFFERED, _not_offered),
}
