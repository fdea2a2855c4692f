"""Request parameters that several S3 operations share: bucket, body, metadata, tags, unsupported members.

No member is ignored silently: an unsupported one is an error that names it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl

from luthier.objects.checksums import BodyChecksums, parse_checksums
from luthier.objects.errors import s3_error
from luthier.objects.forwarding_store import ForwardingObjectStore
from luthier.objects.names import parse_copy_source
from luthier.objects.queries import Attributes, StoredObject
from luthier.objects.reader import ObjectReader
from luthier.objects.store import EmbeddedObjectStore, ObjectStore
from luthier.protocol.aws_chunked import MAX_BODY_BYTES
from luthier.protocol.call import Call

STORED_MEMBERS = ("CacheControl", "ContentDisposition", "ContentEncoding", "ContentLanguage", "ContentType", "Expires",
        "WebsiteRedirectLocation", "StorageClass")  # fmt: skip
METADATA_BYTES = 2048
TAGS, TAG_KEY, TAG_VALUE = 10, 128, 256
ACLS = ("private", "bucket-owner-full-control")

# What S3 does with every object unless told otherwise; here it depends on the disk (docs/security.md).
S3_MANAGED_ENCRYPTION = ("ServerSideEncryption", "AES256")
_ENCRYPTION = "objects are not encrypted by this server: encryption at rest is not there yet"
_LOCK = "object lock is not offered"
UNSUPPORTED_MEMBERS: Mapping[str, str] = {
    **dict.fromkeys(
        ("ServerSideEncryption", "SSECustomerAlgorithm", "SSECustomerKey", "SSECustomerKeyMD5", "SSEKMSKeyId",
         "SSEKMSEncryptionContext", "BucketKeyEnabled", "CopySourceSSECustomerAlgorithm", "CopySourceSSECustomerKey",
         "CopySourceSSECustomerKeyMD5"), _ENCRYPTION),
    **dict.fromkeys(
        ("ObjectLockMode", "ObjectLockRetainUntilDate", "ObjectLockLegalHoldStatus", "ObjectLockEnabledForBucket",
         "ObjectLockEventHold", "ObjectLockEventHoldDurationDays", "ObjectLockEventHoldDurationYears",
         "BypassGovernanceRetention"), _LOCK),
    "MFA": "versions are not offered",
    "WriteOffsetBytes": "appending is not offered",
    "IfMatchLastModifiedTime": "only IfMatch is offered",
    "IfMatchSize": "only IfMatch is offered",
}  # fmt: skip
GRANTS = ("GrantFullControl", "GrantRead", "GrantReadACP", "GrantWrite", "GrantWriteACP")


Operation = Callable[[Call, ObjectStore], dict[str, Any]]


def embedded_store(objects: ObjectStore) -> EmbeddedObjectStore:
    """The embedded store; behind a forwarding store, the one of the virtual buckets."""
    store = objects.virtual_store if isinstance(objects, ForwardingObjectStore) else objects
    assert isinstance(store, EmbeddedObjectStore)
    return store


def check_supported(parameters: Mapping[str, Any]) -> None:
    """WireError for a member that the store does not support."""
    for name, reason in UNSUPPORTED_MEMBERS.items():
        if parameters.get(name) and (name, parameters[name]) != S3_MANAGED_ENCRYPTION:
            raise s3_error("NotImplemented", f"{name}: {reason}")
    if any(parameters.get(name) for name in GRANTS) or parameters.get("ACL", "private") not in ACLS:
        raise s3_error("AccessControlListNotSupported")


def authorized_bucket(
    call: Call, store: EmbeddedObjectStore, bucket: str = "", expected: str = "ExpectedBucketOwner"
) -> str:
    """The name of the request's bucket, or `bucket`; WireError if it does not exist or another account owns it."""
    name = bucket or call.parameters["Bucket"]
    owner = call.account if store.virtual_bucket(name) else store.bucket(name).account
    if owner != call.account or call.parameters.get(expected, owner) != owner:
        raise s3_error("AccessDenied")
    return str(name)


def source(call: Call, store: EmbeddedObjectStore) -> ObjectReader:
    """Open the object that CopySource names."""
    bucket, key = parse_copy_source(call.parameters["CopySource"])
    return store.open(authorized_bucket(call, store, bucket, "ExpectedSourceBucketOwner"), key)


def body(call: Call) -> tuple[Any, BodyChecksums, int | None]:
    """The request's body as chunks, its declared checksums, and its size, if known."""
    headers = call.request.headers
    length = headers.get("content-length", "")
    size = int(length) if length.isdecimal() else None
    if size is not None and size > MAX_BODY_BYTES:
        raise s3_error("EntityTooLarge")
    expected = parse_checksums(call.parameters, headers.get("x-amz-trailer", ""), call.request.trailers)
    sent = call.parameters.get("Body", b"")
    return _limited(iter([sent]) if isinstance(sent, bytes) else sent), expected, size


def _limited(chunks: Any) -> Any:
    size = 0
    for chunk in chunks:
        size += len(chunk)
        if size > MAX_BODY_BYTES:
            raise s3_error("EntityTooLarge")
        yield chunk


def attributes(parameters: Mapping[str, Any]) -> Attributes:
    """The metadata to store with an object; WireErrors MetadataTooLarge and InvalidTag."""
    metadata = {name.lower(): value for name, value in parameters.get("Metadata", {}).items()}
    if sum(len(name.encode()) + len(value.encode()) for name, value in metadata.items()) > METADATA_BYTES:
        raise s3_error("MetadataTooLarge")
    members = {name: str(parameters[name]) for name in STORED_MEMBERS if parameters.get(name)}
    if members.get("StorageClass") == "STANDARD":
        del members["StorageClass"]  # S3 returns it only in lists
    return Attributes(members, metadata, parse_tag_header(parameters.get("Tagging") or ""))


def parse_tag_header(text: str) -> dict[str, str]:
    """The tags of an x-amz-tagging header."""
    try:
        return _check_tags(parse_qsl(text, keep_blank_values=True, strict_parsing=bool(text), max_num_fields=TAGS + 1))
    except ValueError:
        raise s3_error("InvalidArgument", "The header 'x-amz-tagging' shall be encoded as UTF-8 then URLEncoded URL "
                      "query parameters without tag name duplicates.") from None  # fmt: skip


def parse_tag_set(entries: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """The tags of a Tagging document."""
    return _check_tags([(entry["Key"], entry["Value"]) for entry in entries])


def _check_tags(pairs: Sequence[tuple[str, str]]) -> dict[str, str]:
    tags = dict(pairs)
    if len(pairs) > TAGS:
        raise s3_error("BadRequest", f"Object tags cannot be greater than {TAGS}")
    if len(tags) != len(pairs):
        raise s3_error("InvalidTag", "Cannot provide multiple Tags with the same key")
    for key, value in pairs:
        if not 1 <= len(key) <= TAG_KEY:
            raise s3_error("InvalidTag", "The TagKey you have provided is invalid")
        if len(value) > TAG_VALUE:
            raise s3_error("InvalidTag", "The TagValue you have provided is invalid")
    return tags


def owner(account: str) -> dict[str, str]:
    """An account as an S3 owner."""
    return {"ID": hashlib.sha256(account.encode()).hexdigest()}


def whole_seconds(seconds: float) -> datetime:
    """A time without its fraction of a second, as in the header Last-Modified."""
    return datetime.fromtimestamp(int(seconds), UTC)


def quoted(etag: str) -> str:
    return f'"{etag}"'


def checksum_members(stored: StoredObject) -> dict[str, str]:
    return stored.checksum.members() if stored.checksum else {}
