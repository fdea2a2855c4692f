"""What S3 operations share in reading a request: who may use which bucket, what is kept of an object, what is refused.

Nothing that a request asks for is passed over: what the store cannot do is refused by name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl

from luthier.objects.checksums import Demand, demanded
from luthier.objects.errors import refusal
from luthier.objects.forwarding_store import ForwardingObjectStore
from luthier.objects.names import parse_copy_source
from luthier.objects.queries import Attributes, Object
from luthier.objects.reader import Stream
from luthier.objects.store import EmbeddedObjectStore, ObjectStore
from luthier.protocol.call import Call

LARGEST = 5 * 1024**3  # bytes of one request's body, S3's limit
KEPT = ("CacheControl", "ContentDisposition", "ContentEncoding", "ContentLanguage", "ContentType", "Expires",
        "WebsiteRedirectLocation", "StorageClass")  # fmt: skip
METADATA_BYTES = 2048
TAGS, TAG_KEY, TAG_VALUE = 10, 128, 256
ACLS = ("private", "bucket-owner-full-control")

_ENCRYPTION = "objects are not encrypted by this server: encryption at rest is not there yet"
_LOCK = "object lock is not offered"
REFUSED: Mapping[str, str] = {
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


def store_of(objects: ObjectStore) -> EmbeddedObjectStore:
    """The embedded store; where the objects are elsewhere, the one of the buckets that are made up."""
    found = objects.made if isinstance(objects, ForwardingObjectStore) else objects
    assert isinstance(found, EmbeddedObjectStore)
    return found


def check_refused(parameters: Mapping[str, Any]) -> None:
    """WireError for a member that asks for what the store cannot do."""
    for name, why in REFUSED.items():
        if parameters.get(name):
            raise refusal("NotImplemented", f"{name}: {why}")
    if any(parameters.get(name) for name in GRANTS) or parameters.get("ACL", "private") not in ACLS:
        raise refusal("AccessControlListNotSupported")


def allowed(call: Call, store: EmbeddedObjectStore, bucket: str = "", expected: str = "ExpectedBucketOwner") -> str:
    """The name of the bucket that is asked for, or of `bucket`; WireError where there is none, or it is another's."""
    name = bucket or call.parameters["Bucket"]
    owner = call.account if store.virtual(name) else store.bucket(name).account
    if owner != call.account or call.parameters.get(expected, owner) != owner:
        raise refusal("AccessDenied")
    return str(name)


def source(call: Call, store: EmbeddedObjectStore) -> Stream:
    """The open object that CopySource names."""
    bucket, key = parse_copy_source(call.parameters["CopySource"])
    return store.open(allowed(call, store, bucket, "ExpectedSourceBucketOwner"), key)


def body(call: Call) -> tuple[Any, Demand, int | None]:
    """The request's bytes as they come, what is said of them, and how many they are."""
    headers = call.request.headers
    length = headers.get("content-length", "")
    size = int(length) if length.isdecimal() else None
    if size is not None and size > LARGEST:
        raise refusal("EntityTooLarge")
    demand = demanded(call.parameters, headers.get("x-amz-trailer", ""), call.request.trailers)
    sent = call.parameters.get("Body", b"")
    return _bounded(iter([sent]) if isinstance(sent, bytes) else sent), demand, size


def _bounded(chunks: Any) -> Any:
    size = 0
    for chunk in chunks:
        size += len(chunk)
        if size > LARGEST:
            raise refusal("EntityTooLarge")
        yield chunk


def attributes(parameters: Mapping[str, Any]) -> Attributes:
    """What is kept beside an object's bytes; WireErrors MetadataTooLarge and InvalidTag."""
    metadata = {name.lower(): value for name, value in parameters.get("Metadata", {}).items()}
    if sum(len(name.encode()) + len(value.encode()) for name, value in metadata.items()) > METADATA_BYTES:
        raise refusal("MetadataTooLarge")
    members = {name: str(parameters[name]) for name in KEPT if parameters.get(name)}
    if members.get("StorageClass") == "STANDARD":
        del members["StorageClass"]  # S3 names it nowhere but in lists
    return Attributes(members, metadata, tags_of_query(parameters.get("Tagging") or ""))


def tags_of_query(text: str) -> dict[str, str]:
    """The tags of an x-amz-tagging header."""
    try:
        return _checked(parse_qsl(text, keep_blank_values=True, strict_parsing=bool(text), max_num_fields=TAGS + 1))
    except ValueError:
        raise refusal("InvalidArgument", "The header 'x-amz-tagging' shall be encoded as UTF-8 then URLEncoded URL "
                      "query parameters without tag name duplicates.") from None  # fmt: skip


def tags_of_set(entries: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """The tags of a Tagging document."""
    return _checked([(entry["Key"], entry["Value"]) for entry in entries])


def _checked(pairs: Sequence[tuple[str, str]]) -> dict[str, str]:
    tags = dict(pairs)
    if len(pairs) > TAGS:
        raise refusal("BadRequest", f"Object tags cannot be greater than {TAGS}")
    if len(tags) != len(pairs):
        raise refusal("InvalidTag", "Cannot provide multiple Tags with the same key")
    for key, value in pairs:
        if not 1 <= len(key) <= TAG_KEY:
            raise refusal("InvalidTag", "The TagKey you have provided is invalid")
        if len(value) > TAG_VALUE:
            raise refusal("InvalidTag", "The TagValue you have provided is invalid")
    return tags


def owner(account: str) -> dict[str, str]:
    """An account as S3 names it."""
    return {"ID": hashlib.sha256(account.encode()).hexdigest()}


def moment(seconds: float) -> datetime:
    """A time as S3 gives it: whole seconds, as in the header Last-Modified."""
    return datetime.fromtimestamp(int(seconds), UTC)


def quoted(etag: str) -> str:
    return f'"{etag}"'


def checksum_members(found: Object) -> dict[str, str]:
    return found.checksum.members() if found.checksum else {}
