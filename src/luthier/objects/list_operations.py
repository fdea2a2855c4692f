"""S3's list operations: objects (both versions), object versions, multipart uploads and their parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from luthier.objects import listing
from luthier.objects.errors import s3_error
from luthier.objects.names import text_bytes
from luthier.objects.parameters import Operation, authorized_bucket, embedded_store, owner, quoted, whole_seconds
from luthier.objects.queries import StoredObject
from luthier.objects.store import ObjectStore
from luthier.objects.uploads import ID, Upload, Uploads
from luthier.protocol.call import Call

Encode = Callable[[str], str]


def list_objects(call: Call, objects: ObjectStore) -> dict[str, Any]:
    """Version 1: continues after a marker, the last key or common prefix of the previous page."""
    parameters = call.parameters
    marker = parameters.get("Marker") or ""
    page, encode, answer = _page(call, objects, _after(call, marker))
    answer |= {"Marker": encode(marker), "Contents": [_entry(call, item, encode, owned=True) for item in page.objects]}
    if page.following is not None and parameters.get("Delimiter"):
        answer["NextMarker"] = encode(_last(page))
    return answer


def list_objects_v2(call: Call, objects: ObjectStore) -> dict[str, Any]:
    """Version 2: continues from a token; StartAfter applies to the first page only."""
    parameters = call.parameters
    token, after = parameters.get("ContinuationToken"), parameters.get("StartAfter")
    page, encode, answer = _page(
        call, objects, _after(call, after or "") if token is None else listing.from_token(token)
    )
    owned = bool(parameters.get("FetchOwner"))
    contents = [_entry(call, item, encode, owned=owned) for item in page.objects]
    answer |= {"KeyCount": len(page.entries), "Contents": contents}
    if token is not None:
        answer["ContinuationToken"] = token
    if after is not None:
        answer["StartAfter"] = encode(after)
    if page.following is not None:
        answer["NextContinuationToken"] = listing.to_token(page.following)
    return answer


def list_object_versions(call: Call, objects: ObjectStore) -> dict[str, Any]:
    """Each object has one version, `null`, as in an S3 bucket without versioning."""
    marker = call.parameters.get("KeyMarker") or ""
    page, encode, answer = _page(call, objects, _after(call, marker))
    version = {"VersionId": "null", "IsLatest": True}
    answer |= {
        "KeyMarker": encode(marker), "VersionIdMarker": call.parameters.get("VersionIdMarker") or "",
        "Versions": [_entry(call, item, encode, owned=True) | version for item in page.objects],
    }  # fmt: skip
    if page.following is not None:
        answer |= {"NextKeyMarker": encode(_last(page)), "NextVersionIdMarker": "null"}
    return answer


def _after(call: Call, marker: str) -> bytes:
    parameters = call.parameters
    return listing.after(
        text_bytes(marker), text_bytes(parameters.get("Prefix") or ""), text_bytes(parameters.get("Delimiter") or "")
    )


def _page(call: Call, objects: ObjectStore, start: bytes) -> tuple[listing.KeyPage, Encode, dict[str, Any]]:
    """The page, the function that encodes its keys, and the response members that all three operations share."""
    store, parameters = embedded_store(objects), call.parameters
    encode = listing.encoder(parameters.get("EncodingType"))
    limit = listing.page_size(parameters.get("MaxKeys"), "max-keys")
    prefix, delimiter = parameters.get("Prefix") or "", parameters.get("Delimiter") or ""
    bucket = authorized_bucket(call, store)
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


def _entry(call: Call, item: StoredObject, encode: Encode, *, owned: bool) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "Key": encode(item.key), "LastModified": whole_seconds(item.modified), "ETag": quoted(item.etag),
        "Size": item.size, "StorageClass": item.attributes.members.get("StorageClass", "STANDARD"),
    }  # fmt: skip
    if item.checksum:
        entry |= {"ChecksumAlgorithm": [item.checksum.algorithm], "ChecksumType": item.checksum.kind}
    return entry | ({"Owner": owner(call.account)} if owned else {})


def _last(page: listing.KeyPage) -> str:
    last = page.entries[-1]
    return last.key if isinstance(last, StoredObject) else last


def list_multipart_uploads(call: Call, objects: ObjectStore) -> dict[str, Any]:
    store, parameters = embedded_store(objects), call.parameters
    encode = listing.encoder(parameters.get("EncodingType"))
    limit = listing.page_size(parameters.get("MaxUploads"), "max-uploads")
    prefix, delimiter = parameters.get("Prefix") or "", parameters.get("Delimiter") or ""
    key, number = parameters.get("KeyMarker") or "", parameters.get("UploadIdMarker") or ""
    if key and number and not ID.fullmatch(number):
        raise s3_error("InvalidArgument", "Invalid uploadId marker")
    bucket = authorized_bucket(call, store)
    after = listing.after(text_bytes(key), text_bytes(prefix), text_bytes(delimiter))
    entries: list[Upload | str] = []
    truncated = False
    # Without an id, the marker is after all uploads of its key, whose ids are below "g".
    start = text_bytes(key), (number or "g") if key else ""
    for upload in Uploads(store).list_unfinished(bucket, text_bytes(prefix), start):
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
        "UploadId": upload.id, "Key": encode(upload.key), "Initiated": whole_seconds(upload.created),
        "StorageClass": upload.attributes.members.get("StorageClass", "STANDARD"), "Owner": owner(call.account),
        "Initiator": owner(call.account),
    }  # fmt: skip
    return entry | _checksum(upload)


def _checksum(upload: Upload) -> dict[str, str]:
    return {"ChecksumAlgorithm": upload.algorithm, "ChecksumType": upload.kind} if upload.algorithm else {}


def list_parts(call: Call, objects: ObjectStore) -> dict[str, Any]:
    store, parameters = embedded_store(objects), call.parameters
    uploads, limit = Uploads(store), listing.page_size(parameters.get("MaxParts"), "max-parts")
    upload = uploads.find(authorized_bucket(call, store), parameters["Key"], parameters["UploadId"])
    marker = parameters.get("PartNumberMarker") or 0
    parts = uploads.parts(upload, marker, limit + 1) if limit else []
    listed = parts[:limit]
    return {
        "Bucket": upload.bucket, "Key": upload.key, "UploadId": upload.id, "PartNumberMarker": marker,
        "NextPartNumberMarker": listed[-1].number if listed else marker, "MaxParts": limit,
        "IsTruncated": len(parts) > len(listed), "Initiator": owner(call.account), "Owner": owner(call.account),
        "StorageClass": upload.attributes.members.get("StorageClass", "STANDARD"), **_checksum(upload),
        "Parts": [
            {"PartNumber": part.number, "LastModified": whole_seconds(part.modified), "ETag": quoted(part.etag),
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
