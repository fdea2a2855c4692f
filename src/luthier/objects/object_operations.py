"""S3's operations on objects."""

from __future__ import annotations

from collections.abc import Mapping
from email.utils import format_datetime
from typing import Any

from luthier.errors import LuthierError
from luthier.objects.checksums import Checksum, Digest, check_algorithm
from luthier.objects.conditions import WriteCondition, check_read
from luthier.objects.errors import s3_error
from luthier.objects.listing import page_size
from luthier.objects.names import check_version, key_bytes
from luthier.objects.parameters import (
    Operation,
    attributes,
    authorized_bucket,
    body,
    checksum_members,
    embedded_store,
    owner,
    parse_tag_header,
    parse_tag_set,
    quoted,
    source,
    whole_seconds,
)
from luthier.objects.queries import Attributes, StoredObject
from luthier.objects.ranges import ByteRange, parse_range
from luthier.objects.reader import ObjectReader
from luthier.objects.store import EmbeddedObjectStore, ObjectStore
from luthier.protocol.call import Call
from luthier.protocol.errors import WireError, wire_error

MAX_DELETED_KEYS = 1000
ILLEGAL_COPY = (
    "This copy request is illegal because it is trying to copy an object to itself without changing the object's "
    "metadata, storage class, website redirect location or encryption attributes."
)
OVERRIDES = {f"Response{name}": name for name in
             ("CacheControl", "ContentDisposition", "ContentEncoding", "ContentLanguage", "ContentType")}  # fmt: skip


def put_object(call: Call, objects: ObjectStore) -> dict[str, Any]:
    store, parameters = embedded_store(objects), call.parameters
    bucket = authorized_bucket(call, store)
    chunks, expected, size = body(call)
    new = store.put(
        bucket,
        parameters["Key"],
        chunks,
        attributes(parameters),
        expected=expected,
        condition=WriteCondition.of(parameters),
        size=size,
    )
    return {"ETag": quoted(new.etag), **checksum_members(new)}


def get_object(call: Call, objects: ObjectStore) -> dict[str, Any]:
    store = embedded_store(objects)
    bucket = authorized_bucket(call, store)
    check_version(call.parameters.get("VersionId"))
    stream = store.open(bucket, call.parameters["Key"])
    try:
        span, answer = _read(store, stream.object, call.parameters)
        stream.select_range(span)
    except BaseException:
        stream.close()
        raise
    return {**answer, "Body": stream}


def head_object(call: Call, objects: ObjectStore) -> dict[str, Any]:
    store = embedded_store(objects)
    bucket = authorized_bucket(call, store)
    check_version(call.parameters.get("VersionId"))
    if call.parameters.get("PartNumber") is None:
        return _read(store, store.head(bucket, call.parameters["Key"]), call.parameters)[1]
    with store.open(bucket, call.parameters["Key"]) as stream:  # while it is open, its parts are not removed
        return _read(store, stream.object, call.parameters)[1]


def _read(
    store: EmbeddedObjectStore, stored: StoredObject, parameters: Mapping[str, Any]
) -> tuple[ByteRange, dict[str, Any]]:
    """The byte range of a GET or HEAD, and the response without the body."""
    check_read(parameters, stored.etag, stored.modified)
    part, header = parameters.get("PartNumber"), parameters.get("Range")
    if part is not None and header is not None:
        raise s3_error("InvalidRequest", "Cannot specify both Range header and partNumber query parameter")
    span = parse_range(header, stored.size) if part is None else _part(store, stored, part)
    answer = {
        "AcceptRanges": "bytes", "ETag": quoted(stored.etag), "LastModified": whole_seconds(stored.modified),
        "ContentType": "binary/octet-stream", **stored.attributes.members, "Metadata": dict(stored.attributes.metadata),
        **_response_headers(parameters),
    }  # fmt: skip
    if stored.attributes.tags:
        answer["TagCount"] = len(stored.attributes.tags)
    if part is not None and stored.parts:
        answer["PartsCount"] = stored.parts
    if span is None and parameters.get("ChecksumMode") == "ENABLED":
        answer |= checksum_members(stored)  # of the whole object: clients would compare it with the range
    if span is not None and span.size:
        answer["ContentRange"] = span.header(stored.size)
    span = span or ByteRange(0, stored.size)
    return span, {**answer, "ContentLength": span.size}


def _part(store: EmbeddedObjectStore, stored: StoredObject, number: int) -> ByteRange:
    if number < 1 or number > max(1, stored.parts):
        raise s3_error("InvalidPartNumber")
    if not stored.parts:
        return ByteRange(0, stored.size)
    segment = store.segments(stored)[number - 1]
    return ByteRange(segment.start, segment.start + segment.size)


def _response_headers(parameters: Mapping[str, Any]) -> dict[str, str]:
    given = {name: parameters[entries] for entries, name in OVERRIDES.items() if parameters.get(entries) is not None}
    if parameters.get("ResponseExpires") is not None:
        given["Expires"] = format_datetime(parameters["ResponseExpires"], usegmt=True)
    return given


def delete_object(call: Call, objects: ObjectStore) -> dict[str, Any]:
    store = embedded_store(objects)
    bucket = authorized_bucket(call, store)
    check_version(call.parameters.get("VersionId"))
    [error] = store.delete(bucket, [(call.parameters["Key"], WriteCondition(call.parameters.get("IfMatch")))])
    if error:
        raise error
    return {}


def delete_objects(call: Call, objects: ObjectStore) -> dict[str, Any]:
    store = embedded_store(objects)
    bucket = authorized_bucket(call, store)
    entries = call.parameters["Delete"].get("Objects") or []
    if not 1 <= len(entries) <= MAX_DELETED_KEYS:
        raise s3_error("MalformedXML")
    errors: dict[int, WireError] = {}
    deletions: dict[int, tuple[str, WriteCondition]] = {}
    for index, entry in enumerate(entries):
        try:
            deletions[index] = _parse_deleted_key(entry)
        except LuthierError as error:
            errors[index] = wire_error(error)
    outcomes = store.delete(bucket, list(deletions.values()))
    errors |= {index: error for index, error in zip(deletions, outcomes, strict=True) if error}
    quiet = call.parameters["Delete"].get("Quiet", False)
    return {
        "Deleted": []
        if quiet
        else [{"Key": entry["Key"]} for index, entry in enumerate(entries) if index not in errors],
        "Errors": [
            {"Key": entries[index]["Key"], "Code": error.code, "Message": error.message}
            for index, error in sorted(errors.items())
        ],
    }


def _parse_deleted_key(entry: Mapping[str, Any]) -> tuple[str, WriteCondition]:
    check_version(entry.get("VersionId"))
    if entry.get("LastModifiedTime") is not None or entry.get("Size") is not None:
        raise s3_error("NotImplemented", "LastModifiedTime, Size: of the conditions only ETag is offered")
    key_bytes(entry["Key"])
    return entry["Key"], WriteCondition(entry.get("ETag"))


def copy_object(call: Call, objects: ObjectStore) -> dict[str, Any]:
    store, parameters = embedded_store(objects), call.parameters
    bucket, key = authorized_bucket(call, store), parameters["Key"]
    condition = WriteCondition.of(parameters)
    with source(call, store) as stream:
        stored = stream.object
        check_read(parameters, stored.etag, stored.modified, "CopySource")
        replaced = parameters.get("MetadataDirective") == "REPLACE"
        changed = replaced or parameters.get("StorageClass") or parameters.get("WebsiteRedirectLocation")
        if (stored.bucket, stored.key) == (bucket, key) and not changed:
            raise s3_error("InvalidRequest", ILLEGAL_COPY)
        checksum = _copied_checksum(store, stream, check_algorithm(parameters.get("ChecksumAlgorithm") or ""))
        target = StoredObject(
            bucket=bucket,
            key=key,
            content="",
            size=0,
            etag="",
            modified=0.0,
            attributes=_copied_attributes(parameters, stored),
            checksum=checksum,
        )
        new = store.copy(stream, target, condition)
    result = {"ETag": quoted(new.etag), "LastModified": whole_seconds(new.modified), **checksum_members(new)}
    return {"CopyObjectResult": result}


def _copied_attributes(parameters: Mapping[str, Any], stored: StoredObject) -> Attributes:
    """The copy's metadata and tags: each of the source, or of the request if its directive is REPLACE."""
    entries = attributes(parameters)
    members, metadata = entries.members, entries.metadata
    if parameters.get("MetadataDirective") != "REPLACE":
        kept = {name: value for name, value in stored.attributes.members.items() if name not in _NEVER_COPIED}
        members = {**kept, **{name: entries.members[name] for name in _NEVER_COPIED if name in entries.members}}
        metadata = stored.attributes.metadata
    tags = entries.tags if parameters.get("TaggingDirective") == "REPLACE" else stored.attributes.tags
    return Attributes(members, metadata, tags)


_NEVER_COPIED = ("StorageClass", "WebsiteRedirectLocation")  # from the source


def _copied_checksum(store: EmbeddedObjectStore, stream: ObjectReader, algorithm: str) -> Checksum | None:
    """The source's checksum, or one computed from its bytes if another algorithm is requested."""
    stored = stream.object
    if not algorithm or (stored.checksum and stored.checksum.algorithm == algorithm):
        return stored.checksum
    digest = Digest([algorithm])
    with store.open(stored.bucket, stored.key) as again:
        if again.object.content != stored.content:
            raise s3_error("PreconditionFailed", "The source was replaced while it was copied")
        for chunk in again:
            digest.update(chunk)
    return digest.checksum(algorithm)


def get_object_attributes(call: Call, objects: ObjectStore) -> dict[str, Any]:
    store, parameters = embedded_store(objects), call.parameters
    check_version(parameters.get("VersionId"))
    requested = set(parameters["ObjectAttributes"])
    with store.open(authorized_bucket(call, store), parameters["Key"]) as stream:
        stored = stream.object
        answer: dict[str, Any] = {"LastModified": whole_seconds(stored.modified)}
        if "ETag" in requested:
            answer["ETag"] = stored.etag
        if "Checksum" in requested and stored.checksum:
            answer["Checksum"] = stored.checksum.members()
        if "StorageClass" in requested:
            answer["StorageClass"] = stored.attributes.members.get("StorageClass", "STANDARD")
        if "ObjectSize" in requested:
            answer["ObjectSize"] = stored.size
        if "ObjectParts" in requested and stored.parts:
            answer["ObjectParts"] = _parts(store, stored, parameters)
    return answer


def _parts(store: EmbeddedObjectStore, stored: StoredObject, parameters: Mapping[str, Any]) -> dict[str, Any]:
    marker, most = parameters.get("PartNumberMarker") or 0, page_size(parameters.get("MaxParts"), "max-parts")
    numbered = [(number, segment) for number, segment in enumerate(store.segments(stored), 1) if number > marker]
    listed = numbered[:most]
    answer: dict[str, Any] = {
        "TotalPartsCount": stored.parts, "PartNumberMarker": marker, "MaxParts": most,
        "IsTruncated": len(numbered) > len(listed), "NextPartNumberMarker": listed[-1][0] if listed else marker,
    }  # fmt: skip
    if stored.checksum:  # as in S3, parts are listed only if they have checksums
        name = f"Checksum{stored.checksum.algorithm}"
        answer["Parts"] = [{"PartNumber": n, "Size": part.size, name: part.checksum} for n, part in listed]
    return answer


def get_object_acl(call: Call, objects: ObjectStore) -> dict[str, Any]:
    store = embedded_store(objects)
    store.head(authorized_bucket(call, store), call.parameters["Key"])
    check_version(call.parameters.get("VersionId"))
    return owner_acl(call.account)


def owner_acl(account: str) -> dict[str, Any]:
    """The ACL of every bucket and object: full control for the owner."""
    grantee = {**owner(account), "Type": "CanonicalUser"}
    return {"Owner": owner(account), "Grants": [{"Grantee": grantee, "Permission": "FULL_CONTROL"}]}


def get_object_tagging(call: Call, objects: ObjectStore) -> dict[str, Any]:
    store = embedded_store(objects)
    check_version(call.parameters.get("VersionId"))
    tags = store.head(authorized_bucket(call, store), call.parameters["Key"]).attributes.tags
    return {"TagSet": [{"Key": key, "Value": value} for key, value in tags.items()]}


def put_object_tagging(call: Call, objects: ObjectStore) -> dict[str, Any]:
    store = embedded_store(objects)
    check_version(call.parameters.get("VersionId"))
    tags = parse_tag_set(call.parameters["Tagging"].get("TagSet") or [])
    store.set_tags(authorized_bucket(call, store), call.parameters["Key"], tags)
    return {}


def delete_object_tagging(call: Call, objects: ObjectStore) -> dict[str, Any]:
    store = embedded_store(objects)
    check_version(call.parameters.get("VersionId"))
    store.set_tags(authorized_bucket(call, store), call.parameters["Key"], parse_tag_header(""))
    return {}


OPERATIONS: Mapping[str, Operation] = {
    "PutObject": put_object,
    "GetObject": get_object,
    "HeadObject": head_object,
    "DeleteObject": delete_object,
    "DeleteObjects": delete_objects,
    "CopyObject": copy_object,
    "GetObjectAttributes": get_object_attributes,
    "GetObjectAcl": get_object_acl,
    "GetObjectTagging": get_object_tagging,
    "PutObjectTagging": put_object_tagging,
    "DeleteObjectTagging": delete_object_tagging,
}
