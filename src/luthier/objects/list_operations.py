"""S3's lists: objects (both versions), object versions, multipart uploads and their parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from luthier.objects import listing
from luthier.objects.errors import refusal
from luthier.objects.names import text_bytes
from luthier.objects.parameters import Operation, allowed, moment, owner, quoted, store_of
from luthier.objects.queries import Object
from luthier.objects.store import ObjectStore
from luthier.objects.uploads import ID, Upload, Uploads
from luthier.protocol.call import Call

Encode = Callable[[str], str]


def list_objects(call: Call, objects: ObjectStore) -> dict[str, Any]:
    """Version 1: goes on after a marker, which is the last key or folded prefix of the page before."""
    parameters = call.parameters
    marker = parameters.get("Marker") or ""
    page, encode, answer = _page(call, objects, _after(call, marker))
    answer |= {"Marker": encode(marker), "Contents": [_entry(call, one, encode, owned=True) for one in page.objects]}
    if page.following is not None and parameters.get("Delimiter"):
        answer["NextMarker"] = encode(_last(page))
    return answer


def list_objects_v2(call: Call, objects: ObjectStore) -> dict[str, Any]:
    """Version 2: goes on by a token; StartAfter counts for the first page only."""
    parameters = call.parameters
    token, after = parameters.get("ContinuationToken"), parameters.get("StartAfter")
    page, encode, answer = _page(
        call, objects, _after(call, after or "") if token is None else listing.from_token(token)
    )
    owned = bool(parameters.get("FetchOwner"))
    contents = [_entry(call, one, encode, owned=owned) for one in page.objects]
    answer |= {"KeyCount": len(page.entries), "Contents": contents}
    if token is not None:
        answer["ContinuationToken"] = token
    if after is not None:
        answer["StartAfter"] = encode(after)
    if page.following is not None:
        answer["NextContinuationToken"] = listing.to_token(page.following)
    return answer


def list_object_versions(call: Call, objects: ObjectStore) -> dict[str, Any]:
    """Each object is its only version, called null, as in a bucket of S3 that never had versioning."""
    marker = call.parameters.get("KeyMarker") or ""
    page, encode, answer = _page(call, objects, _after(call, marker))
    version = {"VersionId": "null", "IsLatest": True}
    answer |= {
        "KeyMarker": encode(marker), "VersionIdMarker": call.parameters.get("VersionIdMarker") or "",
        "Versions": [_entry(call, one, encode, owned=True) | version for one in page.objects],
    }  # fmt: skip
    if page.following is not None:
        answer |= {"NextKeyMarker": encode(_last(page)), "NextVersionIdMarker": "null"}
    return answer


def _after(call: Call, marker: str) -> bytes:
    parameters = call.parameters
    return listing.after(
        text_bytes(marker), text_bytes(parameters.get("Prefix") or ""), text_bytes(parameters.get("Delimiter") or "")
    )


def _page(call: Call, objects: ObjectStore, start: bytes) -> tuple[listing.Page, Encode, dict[str, Any]]:
    """The page asked for, how to write its keys, and what all three lists answer."""
    store, parameters = store_of(objects), call.parameters
    encode = listing.encoder(parameters.get("EncodingType"))
    limit = listing.page_size(parameters.get("MaxKeys"), "max-keys")
    prefix, delimiter = parameters.get("Prefix") or "", parameters.get("Delimiter") or ""
    bucket = allowed(call, store)
    page = store.page(bucket, prefix, delimiter, start, limit)
    answer: dict[str, Any] = {
        "Name": bucket, "Prefix": encode(prefix), "MaxKeys": limit, "IsTruncated": page.following is not None,
        "CommonPrefixes": [{"Prefix": encode(folded)} for folded in page.prefixes],
    }  # fmt: skip
    if delimiter:
        answer["Delimiter"] = encode(delimiter)
    if parameters.get("EncodingType"):
        answer["EncodingType"] = parameters["EncodingType"]
    return page, encode, answer


def _entry(call: Call, one: Object, encode: Encode, *, owned: bool) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "Key": encode(one.key), "LastModified": moment(one.modified), "ETag": quoted(one.etag), "Size": one.size,
        "StorageClass": one.attributes.members.get("StorageClass", "STANDARD"),
    }  # fmt: skip
    if one.checksum:
        entry |= {"ChecksumAlgorithm": [one.checksum.algorithm], "ChecksumType": one.checksum.kind}
    return entry | ({"Owner": owner(call.account)} if owned else {})


def _last(page: listing.Page) -> str:
    last = page.entries[-1]
    return last.key if isinstance(last, Object) else last


def list_multipart_uploads(call: Call, objects: ObjectStore) -> dict[str, Any]:
    store, parameters = store_of(objects), call.parameters
    encode = listing.encoder(parameters.get("EncodingType"))
    limit = listing.page_size(parameters.get("MaxUploads"), "max-uploads")
    prefix, delimiter = parameters.get("Prefix") or "", parameters.get("Delimiter") or ""
    key, number = parameters.get("KeyMarker") or "", parameters.get("UploadIdMarker") or ""
    if key and number and not ID.fullmatch(number):
        raise refusal("InvalidArgument", "Invalid uploadId marker")
    bucket = allowed(call, store)
    after = listing.after(text_bytes(key), text_bytes(prefix), text_bytes(delimiter))
    entries: list[Upload | str] = []
    truncated = False
    # Without an id, a marker stands for all uploads of its key: none has an id above g.
    start = text_bytes(key), (number or "g") if key else ""
    for upload in Uploads(store).going_on(bucket, text_bytes(prefix), start):
        at = upload.key.find(delimiter, len(prefix)) if delimiter else -1
        folded = upload.key[: at + len(delimiter)] if at >= 0 else ""
        if folded and (folded in entries or text_bytes(folded) < after):
            continue
        if len(entries) == limit:
            truncated = limit > 0
            break
        entries.append(folded or upload)
    answer: dict[str, Any] = {
        "Bucket": bucket, "Prefix": encode(prefix), "KeyMarker": encode(key), "UploadIdMarker": number,
        "MaxUploads": limit, "IsTruncated": truncated,
        "Uploads": [_upload(call, entry, encode) for entry in entries if isinstance(entry, Upload)],
        "CommonPrefixes": [{"Prefix": encode(entry)} for entry in entries if isinstance(entry, str)],
    }  # fmt: skip
    if delimiter:
        answer["Delimiter"] = encode(delimiter)
    if parameters.get("EncodingType"):
        answer["EncodingType"] = parameters["EncodingType"]
    if truncated:
        last = entries[-1]
        answer["NextKeyMarker"] = encode(last.key if isinstance(last, Upload) else last)
        answer["NextUploadIdMarker"] = last.id if isinstance(last, Upload) else ""
    return answer


def _upload(call: Call, upload: Upload, encode: Encode) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "UploadId": upload.id, "Key": encode(upload.key), "Initiated": moment(upload.created),
        "StorageClass": upload.attributes.members.get("StorageClass", "STANDARD"), "Owner": owner(call.account),
        "Initiator": owner(call.account),
    }  # fmt: skip
    return entry | _checksum(upload)


def _checksum(upload: Upload) -> dict[str, str]:
    return {"ChecksumAlgorithm": upload.algorithm, "ChecksumType": upload.kind} if upload.algorithm else {}


def list_parts(call: Call, objects: ObjectStore) -> dict[str, Any]:
    store, parameters = store_of(objects), call.parameters
    uploads, limit = Uploads(store), listing.page_size(parameters.get("MaxParts"), "max-parts")
    upload = uploads.find(allowed(call, store), parameters["Key"], parameters["UploadId"])
    marker = parameters.get("PartNumberMarker") or 0
    found = uploads.parts(upload, marker, limit + 1) if limit else []
    listed = found[:limit]
    return {
        "Bucket": upload.bucket, "Key": upload.key, "UploadId": upload.id, "PartNumberMarker": marker,
        "NextPartNumberMarker": listed[-1].number if listed else marker, "MaxParts": limit,
        "IsTruncated": len(found) > len(listed), "Initiator": owner(call.account), "Owner": owner(call.account),
        "StorageClass": upload.attributes.members.get("StorageClass", "STANDARD"), **_checksum(upload),
        "Parts": [
            {"PartNumber": part.number, "LastModified": moment(part.modified), "ETag": quoted(part.etag),
             "Size": part.size} | ({f"Checksum{upload.algorithm}": part.checksum} if upload.algorithm else {})
            for part in listed
        ],
    }  # fmt: skip


OPERATIONS: Mapping[str, Operation] = {
    "ListObjects": list_objects,
    "ListObjectsV2": list_objects_v2,
    "ListObjectVersions": list_object_versions,
    "ListMultipartUploads": list_multipart_uploads,
    "ListParts": list_parts,
}
