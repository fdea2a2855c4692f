"""S3's operations on buckets. Bucket configurations are not supported: reading one returns S3's response for none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luthier.objects import listing
from luthier.objects.errors import s3_error
from luthier.objects.object_operations import owner_acl
from luthier.objects.parameters import Operation, authorized_bucket, embedded_store, owner, whole_seconds
from luthier.objects.queries import Bucket
from luthier.objects.store import ObjectStore
from luthier.protocol.call import GLOBAL_REGION, Call

LOCATIONS = {"EU": "eu-west-1", "": GLOBAL_REGION}
MAX_BUCKETS = 10_000


def create_bucket(call: Call, objects: ObjectStore) -> dict[str, Any]:
    """Create a bucket in the region of LocationConstraint, else in the request's."""
    configuration = call.parameters.get("CreateBucketConfiguration") or {}
    for name in ("Location", "Bucket", "Tags"):
        if configuration.get(name):
            raise s3_error("NotImplemented", f"CreateBucketConfiguration.{name}: only LocationConstraint is offered")
    if call.parameters.get("BucketNamespace", "global") != "global":
        raise s3_error("NotImplemented", "BucketNamespace: only global is offered")
    constraint = configuration.get("LocationConstraint") or ""
    region = LOCATIONS.get(constraint, constraint) if constraint else call.region
    bucket = embedded_store(objects).create_bucket(call.parameters["Bucket"], call.account, region)
    return {"Location": f"/{bucket.name}", "BucketArn": _arn(bucket.name)}


def delete_bucket(call: Call, objects: ObjectStore) -> dict[str, Any]:
    store = embedded_store(objects)
    name = authorized_bucket(call, store)
    store.check_writable(name)
    store.delete_bucket(name)
    return {}


def head_bucket(call: Call, objects: ObjectStore) -> dict[str, Any]:
    bucket = _bucket(call, objects)
    return {"BucketRegion": bucket.region, "BucketArn": _arn(bucket.name), "AccessPointAlias": False}


def get_bucket_location(call: Call, objects: ObjectStore) -> dict[str, Any]:
    region = _bucket(call, objects).region
    return {"LocationConstraint": "" if region == GLOBAL_REGION else region}


def _bucket(call: Call, objects: ObjectStore) -> Bucket:
    """The request's bucket; a virtual one is in the request's region."""
    store = embedded_store(objects)
    name = authorized_bucket(call, store)
    return Bucket(name, call.account, call.region, 0.0) if store.virtual_bucket(name) else store.bucket(name)


def list_buckets(call: Call, objects: ObjectStore) -> dict[str, Any]:
    parameters = call.parameters
    prefix, region = parameters.get("Prefix") or "", parameters.get("BucketRegion")
    limit, token = parameters.get("MaxBuckets") or MAX_BUCKETS, parameters.get("ContinuationToken")
    after = listing.from_token(token).decode("utf-8", "replace") if token else ""
    matches = [
        bucket for bucket in embedded_store(objects).buckets(call.account)
        if bucket.name.startswith(prefix) and bucket.name > after and region in (None, bucket.region)
    ]  # fmt: skip
    listed = matches[:limit]
    answer: dict[str, Any] = {
        "Owner": owner(call.account),
        "Buckets": [
            {"Name": bucket.name, "CreationDate": whole_seconds(bucket.created), "BucketRegion": bucket.region,
             "BucketArn": _arn(bucket.name)}
            for bucket in listed
        ],
    }  # fmt: skip
    if prefix:
        answer["Prefix"] = prefix
    if len(matches) > len(listed):
        answer["ContinuationToken"] = listing.to_token(listed[-1].name.encode())
    return answer


def _arn(name: str) -> str:
    return f"arn:aws:s3:::{name}"


def get_bucket_acl(call: Call, objects: ObjectStore) -> dict[str, Any]:
    authorized_bucket(call, embedded_store(objects))
    return owner_acl(call.account)


def _returns(answer: Mapping[str, Any]) -> Operation:
    """An operation that returns `answer` for every bucket."""

    def operation(call: Call, objects: ObjectStore) -> dict[str, Any]:
        authorized_bucket(call, embedded_store(objects))
        return dict(answer)

    return operation


def _raises_not_found(code: str, message: str) -> Operation:
    """An operation that raises 404 with `code` for every bucket."""

    def operation(call: Call, objects: ObjectStore) -> dict[str, Any]:
        authorized_bucket(call, embedded_store(objects))
        raise s3_error(code, message, 404)

    return operation


def _not_implemented(call: Call, objects: ObjectStore) -> dict[str, Any]:
    authorized_bucket(call, embedded_store(objects))
    raise s3_error("NotImplemented", f"{call.operation}: this server's object store does not offer it")


_NO_LOCK = "The specified object does not have a ObjectLock configuration"
_NOT_CONFIGURED: Mapping[str, tuple[str, str]] = {
    "GetBucketPolicy": ("NoSuchBucketPolicy", "The bucket policy does not exist"),
    "GetBucketPolicyStatus": ("NoSuchBucketPolicy", "The bucket policy does not exist"),
    "GetBucketCors": ("NoSuchCORSConfiguration", "The CORS configuration does not exist"),
    "GetBucketLifecycleConfiguration": ("NoSuchLifecycleConfiguration", "The lifecycle configuration does not exist"),
    "GetBucketWebsite": ("NoSuchWebsiteConfiguration", "The specified bucket does not have a website configuration"),
    "GetBucketTagging": ("NoSuchTagSet", "The TagSet does not exist"),
    "GetBucketReplication": ("ReplicationConfigurationNotFoundError", "The replication configuration was not found"),
    "GetObjectLockConfiguration": ("ObjectLockConfigurationNotFoundError",
                                   "Object Lock configuration does not exist for this bucket"),
    "GetObjectRetention": ("NoSuchObjectLockConfiguration", _NO_LOCK),
    "GetObjectLegalHold": ("NoSuchObjectLockConfiguration", _NO_LOCK),
}  # fmt: skip

_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "GetBucketVersioning": {},
    "GetBucketEncryption": {
        "ServerSideEncryptionConfiguration": {
            "Rules": [{"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}, "BucketKeyEnabled": False}]
        }
    },
    "GetPublicAccessBlock": {
        "PublicAccessBlockConfiguration": {
            "BlockPublicAcls": True,
            "IgnorePublicAcls": True,
            "BlockPublicPolicy": True,
            "RestrictPublicBuckets": True,
        }
    },
    "GetBucketLogging": {},
    "GetBucketNotificationConfiguration": {},
    "GetBucketAccelerateConfiguration": {},
    "GetBucketRequestPayment": {"Payer": "BucketOwner"},
    "GetBucketOwnershipControls": {"OwnershipControls": {"Rules": [{"ObjectOwnership": "BucketOwnerEnforced"}]}},
    "ListBucketAnalyticsConfigurations": {"IsTruncated": False},
    "ListBucketIntelligentTieringConfigurations": {"IsTruncated": False},
    "ListBucketInventoryConfigurations": {"IsTruncated": False},
    "ListBucketMetricsConfigurations": {"IsTruncated": False},
    # Deleting a configuration that does not exist succeeds on S3, too.
    "DeleteBucketPolicy": {},
    "DeleteBucketCors": {},
    "DeleteBucketLifecycle": {},
    "DeleteBucketWebsite": {},
    "DeleteBucketTagging": {},
    "DeleteBucketReplication": {},
    "DeleteBucketEncryption": {},
    "DeletePublicAccessBlock": {},
}

NOT_IMPLEMENTED = (
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
    **{name: _raises_not_found(*error) for name, error in _NOT_CONFIGURED.items()},
    **{name: _returns(answer) for name, answer in _DEFAULTS.items()},
    **dict.fromkeys(NOT_IMPLEMENTED, _not_implemented),
}
