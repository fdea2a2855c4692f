"""S3's operations on one object, or on several by name."""

from __future__ import annotations

from collections.abc import Mapping
from email.utils import format_datetime
from typing import Any

from luthier.errors import LuthierError
from luthier.objects.checksums import Checksum, Digest, known
from luthier.objects.conditions import Guard, check_read
from luthier.objects.errors import refusal
from luthier.objects.listing import page_size
from luthier.objects.names import check_version, key_bytes
from luthier.objects.parameters import (
    Operation,
    allowed,
    attributes,
    body,
    checksum_members,
    moment,
    owner,
    quoted,
    source,
    store_of,
    tags_of_query,
    tags_of_set,
)
from luthier.objects.queries import Attributes, Object
from luthier.objects.ranges import Span, parse_range
from luthier.objects.reader import Stream
from luthier.objects.store import EmbeddedObjectStore, ObjectStore
from luthier.protocol.call import Call
from luthier.protocol.errors import WireError, wire_error

DELETED_AT_ONCE = 1000
ILLEGAL_COPY = (
    "This copy request is illegal because it is trying to copy an object to itself without changing the object's "
    "metadata, storage class, website redirect location or encryption attributes."
)
OVERRIDES = {f"Response{name}": name for name in
             ("CacheControl", "ContentDisposition", "ContentEncoding", "ContentLanguage", "ContentType")}  # fmt: skip


def put_object(call: Call, objects: ObjectStore) -> dict[str, Any]:
    store, parameters = store_of(objects), call.parameters
    bucket = allowed(call, store)
    chunks, demand, size = body(call)
    new = store.put(
        bucket, parameters["Key"], chunks, attributes(parameters), demand=demand, guard=Guard.of(parameters), size=size
    )
    return {"ETag": quoted(new.etag), **checksum_members(new)}


def get_object(call: Call, objects: ObjectStore) -> dict[str, Any]:
    store = store_of(objects)
    bucket = allowed(call, store)
    check_version(call.parameters.get("VersionId"))
    stream = store.open(bucket, call.parameters["Key"])
    try:
        span, answer = _read(store, stream.object, call.parameters)
        stream.narrow(span)
    except BaseException:
        stream.close()
        raise
    return {**answer, "Body": stream}


def head_object(call: Call, objects: ObjectStore) -> dict[str, Any]:
    store = store_of(objects)
    bucket = allowed(call, store)
    check_version(call.parameters.get("VersionId"))
    if call.parameters.get("PartNumber") is None:
        return _read(store, store.head(bucket, call.parameters["Key"]), call.parameters)[1]
    with store.open(bucket, call.parameters["Key"]) as stream:  # open, its parts cannot go
        return _read(store, stream.object, call.parameters)[1]


def _read(store: EmbeddedObjectStore, found: Object, parameters: Mapping[str, Any]) -> tuple[Span, dict[str, Any]]:
    """Which bytes a GET or HEAD is about, and all of the answer but these."""
    check_read(parameters, found.etag, found.modified)
    part, header = parameters.get("PartNumber"), parameters.get("Range")
    if part is not None and header is not None:
        raise refusal("InvalidRequest", "Cannot specify both Range header and partNumber query parameter")
    span = parse_range(header, found.size) if part is None else _part(store, found, part)
    answer = {
        "AcceptRanges": "bytes", "ETag": quoted(found.etag), "LastModified": moment(found.modified),
        "ContentType": "binary/octet-stream", **found.attributes.members, "Metadata": dict(found.attributes.metadata),
        **_overrides(parameters),
    }  # fmt: skip
    if found.attributes.tags:
        answer["TagCount"] = len(found.attributes.tags)
    if part is not None and found.parts:
        answer["PartsCount"] = found.parts
    if span is None and parameters.get("ChecksumMode") == "ENABLED":
        answer |= checksum_members(found)  # of the whole: with a part of it, clients would find it wrong
    if span is not None and span.size:
        answer["ContentRange"] = span.header(found.size)
    span = span or Span(0, found.size)
    return span, {**answer, "ContentLength": span.size}


def _part(store: EmbeddedObjectStore, found: Object, number: int) -> Span:
    if number < 1 or number > max(1, found.parts):
        raise refusal("InvalidPartNumber")
    if not found.parts:
        return Span(0, found.size)
    segment = store.segments(found)[number - 1]
    return Span(segment.start, segment.start + segment.size)


def _overrides(parameters: Mapping[str, Any]) -> dict[str, str]:
    given = {name: parameters[asked] for asked, name in OVERRIDES.items() if parameters.get(asked) is not None}
    if parameters.get("ResponseExpires") is not None:
        given["Expires"] = format_datetime(parameters["ResponseExpires"], usegmt=True)
    return given


def delete_object(call: Call, objects: ObjectStore) -> dict[str, Any]:
    store = store_of(objects)
    bucket = allowed(call, store)
    check_version(call.parameters.get("VersionId"))
    [refused] = store.delete(bucket, [(call.parameters["Key"], Guard(call.parameters.get("IfMatch")))])
    if refused:
        raise refused
    return {}


def delete_objects(call: Call, objects: ObjectStore) -> dict[str, Any]:
    store = store_of(objects)
    bucket = allowed(call, store)
    asked = call.parameters["Delete"].get("Objects") or []
    if not 1 <= len(asked) <= DELETED_AT_ONCE:
        raise refusal("MalformedXML")
    errors: dict[int, WireError] = {}
    wanted: dict[int, tuple[str, Guard]] = {}
    for index, entry in enumerate(asked):
        try:
            wanted[index] = _wanted(entry)
        except LuthierError as refused:
            errors[index] = wire_error(refused)
    outcomes = store.delete(bucket, list(wanted.values()))
    errors |= {index: refused for index, refused in zip(wanted, outcomes, strict=True) if refused}
    quiet = call.parameters["Delete"].get("Quiet", False)
    return {
        "Deleted": [] if quiet else [{"Key": entry["Key"]} for index, entry in enumerate(asked) if index not in errors],
        "Errors": [
            {"Key": asked[index]["Key"], "Code": error.code, "Message": error.message}
            for index, error in sorted(errors.items())
        ],
    }


def _wanted(entry: Mapping[str, Any]) -> tuple[str, Guard]:
    check_version(entry.get("VersionId"))
    if entry.get("LastModifiedTime") is not None or entry.get("Size") is not None:
        raise refusal("NotImplemented", "LastModifiedTime, Size: of the conditions only ETag is offered")
    key_bytes(entry["Key"])
    return entry["Key"], Guard(entry.get("ETag"))


def copy_object(call: Call, objects: ObjectStore) -> dict[str, Any]:
    store, parameters = store_of(objects), call.parameters
    bucket, key = allowed(call, store), parameters["Key"]
    guard = Guard.of(parameters)
    with source(call, store) as stream:
        found = stream.object
        check_read(parameters, found.etag, found.modified, "CopySource")
        replaced = parameters.get("MetadataDirective") == "REPLACE"
        changed = replaced or parameters.get("StorageClass") or parameters.get("WebsiteRedirectLocation")
        if (found.bucket, found.key) == (bucket, key) and not changed:
            raise refusal("InvalidRequest", ILLEGAL_COPY)
        checksum = _copied_checksum(store, stream, known(parameters.get("ChecksumAlgorithm") or ""))
        target = Object(
            bucket=bucket,
            key=key,
            content="",
            size=0,
            etag="",
            modified=0.0,
            attributes=_copied(parameters, found),
            checksum=checksum,
        )
        new = store.copy(stream, target, guard)
    result = {"ETag": quoted(new.etag), "LastModified": moment(new.modified), **checksum_members(new)}
    return {"CopyObjectResult": result}


def _copied(parameters: Mapping[str, Any], found: Object) -> Attributes:
    """What the copy keeps: the source's own, or the request's, for the metadata and the tags each."""
    asked = attributes(parameters)
    members, metadata = asked.members, asked.metadata
    if parameters.get("MetadataDirective") != "REPLACE":
        kept = {name: value for name, value in found.attributes.members.items() if name not in _ASKED_ANEW}
        members = {**kept, **{name: asked.members[name] for name in _ASKED_ANEW if name in asked.members}}
        metadata = found.attributes.metadata
    tags = asked.tags if parameters.get("TaggingDirective") == "REPLACE" else found.attributes.tags
    return Attributes(members, metadata, tags)


_ASKED_ANEW = ("StorageClass", "WebsiteRedirectLocation")  # that a copy never takes over


def _copied_checksum(store: EmbeddedObjectStore, stream: Stream, algorithm: str) -> Checksum | None:
    """The source's own checksum, or, where another algorithm is asked for, that of its bytes."""
    found = stream.object
    if not algorithm or (found.checksum and found.checksum.algorithm == algorithm):
        return found.checksum
    digest = Digest([algorithm])
    with store.open(found.bucket, found.key) as again:
        if again.object.content != found.content:
            raise refusal("PreconditionFailed", "The source was replaced while it was copied")
        for chunk in again:
            digest.update(chunk)
    return digest.checksum(algorithm)


def get_object_attributes(call: Call, objects: ObjectStore) -> dict[str, Any]:
    store, parameters = store_of(objects), call.parameters
    check_version(parameters.get("VersionId"))
    wanted = set(parameters["ObjectAttributes"])
    with store.open(allowed(call, store), parameters["Key"]) as stream:
        found = stream.object
        answer: dict[str, Any] = {"LastModified": moment(found.modified)}
        if "ETag" in wanted:
            answer["ETag"] = found.etag
        if "Checksum" in wanted and found.checksum:
            answer["Checksum"] = found.checksum.members()
        if "StorageClass" in wanted:
            answer["StorageClass"] = found.attributes.members.get("StorageClass", "STANDARD")
        if "ObjectSize" in wanted:
            answer["ObjectSize"] = found.size
        if "ObjectParts" in wanted and found.parts:
            answer["ObjectParts"] = _parts(store, found, parameters)
    return answer


def _parts(store: EmbeddedObjectStore, found: Object, parameters: Mapping[str, Any]) -> dict[str, Any]:
    marker, most = parameters.get("PartNumberMarker") or 0, page_size(parameters.get("MaxParts"), "max-parts")
    numbered = [(number, segment) for number, segment in enumerate(store.segments(found), 1) if number > marker]
    listed = numbered[:most]
    answer: dict[str, Any] = {
        "TotalPartsCount": found.parts, "PartNumberMarker": marker, "MaxParts": most,
        "IsTruncated": len(numbered) > len(listed), "NextPartNumberMarker": listed[-1][0] if listed else marker,
    }  # fmt: skip
    if found.checksum:  # as in S3, parts are listed only where they have checksums
        name = f"Checksum{found.checksum.algorithm}"
        answer["Parts"] = [{"PartNumber": n, "Size": part.size, name: part.checksum} for n, part in listed]
    return answer


def get_object_acl(call: Call, objects: ObjectStore) -> dict[str, Any]:
    store = store_of(objects)
    store.head(allowed(call, store), call.parameters["Key"])
    check_version(call.parameters.get("VersionId"))
    return full_control(call.account)


def full_control(account: str) -> dict[str, Any]:
    """The only access list there is: all to the owner."""
    grantee = {**owner(account), "Type": "CanonicalUser"}
    return {"Owner": owner(account), "Grants": [{"Grantee": grantee, "Permission": "FULL_CONTROL"}]}


def get_object_tagging(call: Call, objects: ObjectStore) -> dict[str, Any]:
    store = store_of(objects)
    check_version(call.parameters.get("VersionId"))
    tags = store.head(allowed(call, store), call.parameters["Key"]).attributes.tags
    return {"TagSet": [{"Key": key, "Value": value} for key, value in tags.items()]}


def put_object_tagging(call: Call, objects: ObjectStore) -> dict[str, Any]:
    store = store_of(objects)
    check_version(call.parameters.get("VersionId"))
    tags = tags_of_set(call.parameters["Tagging"].get("TagSet") or [])
    store.set_tags(allowed(call, store), call.parameters["Key"], tags)
    return {}


def delete_object_tagging(call: Call, objects: ObjectStore) -> dict[str, Any]:
    store = store_of(objects)
    check_version(call.parameters.get("VersionId"))
    store.set_tags(allowed(call, store), call.parameters["Key"], tags_of_query(""))
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
