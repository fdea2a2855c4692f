"""S3's operations on multipart uploads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from luthier.objects.checksums import ALGORITHMS, check_algorithm
from luthier.objects.conditions import WriteCondition, check_read, strip_etag
from luthier.objects.errors import s3_error
from luthier.objects.parameters import (
    Operation,
    attributes,
    authorized_bucket,
    body,
    embedded_store,
    quoted,
    source,
    whole_seconds,
)
from luthier.objects.ranges import parse_copy_range
from luthier.objects.store import ObjectStore
from luthier.objects.uploads import CompletedPart, ExpectedObject, Part, Upload, Uploads
from luthier.protocol.call import Call


def create_multipart_upload(call: Call, objects: ObjectStore) -> dict[str, Any]:
    store, parameters = embedded_store(objects), call.parameters
    algorithm = check_algorithm(parameters.get("ChecksumAlgorithm") or "")
    upload = Uploads(store).begin(
        authorized_bucket(call, store),
        parameters["Key"],
        attributes(parameters),
        algorithm,
        parameters.get("ChecksumType") or "",
    )
    answer = {"Bucket": upload.bucket, "Key": upload.key, "UploadId": upload.id}
    return answer | ({"ChecksumAlgorithm": algorithm, "ChecksumType": upload.kind} if algorithm else {})


def upload_part(call: Call, objects: ObjectStore) -> dict[str, Any]:
    store = embedded_store(objects)
    upload = _upload(call, Uploads(store), authorized_bucket(call, store))
    chunks, expected, size = body(call)
    part = Uploads(store).put_part(upload, call.parameters["PartNumber"], chunks, expected=expected, size=size)
    answer = {"ETag": quoted(part.etag), **_checksum(upload, part)}
    if expected.algorithm and expected.algorithm != upload.algorithm and expected.expected:
        answer[f"Checksum{expected.algorithm}"] = expected.expected  # verified, although the upload stores another
    return answer


def upload_part_copy(call: Call, objects: ObjectStore) -> dict[str, Any]:
    store, parameters = embedded_store(objects), call.parameters
    upload = _upload(call, Uploads(store), authorized_bucket(call, store))
    with source(call, store) as stream:
        check_read(parameters, stream.object.etag, stream.object.modified, "CopySource")
        if parameters.get("CopySourceRange"):
            stream.select_range(parse_copy_range(parameters["CopySourceRange"], stream.object.size))
        part = Uploads(store).put_part(upload, parameters["PartNumber"], stream, size=stream.range.size)
    result = {"ETag": quoted(part.etag), "LastModified": whole_seconds(part.modified), **_checksum(upload, part)}
    return {"CopyPartResult": result}


def complete_multipart_upload(call: Call, objects: ObjectStore) -> dict[str, Any]:
    store, parameters = embedded_store(objects), call.parameters
    listed = [_parse_part(entry) for entry in (parameters.get("MultipartUpload") or {}).get("Parts") or []]
    sent = [str(parameters[f"Checksum{name}"]) for name in ALGORITHMS if parameters.get(f"Checksum{name}")]
    expected_object = ExpectedObject(
        parameters.get("MpuObjectSize"), sent[0] if sent else "", WriteCondition.of(parameters)
    )
    bucket = authorized_bucket(call, store)
    done = Uploads(store).complete(bucket, parameters["Key"], parameters["UploadId"], listed, expected_object)
    location = f"http://{call.request.headers.get('host', '')}/{bucket}/{quote(done.key)}"
    answer = {"Location": location, "Bucket": bucket, "Key": done.key, "ETag": quoted(done.etag)}
    return answer | (done.checksum.members() if done.checksum else {})


def abort_multipart_upload(call: Call, objects: ObjectStore) -> dict[str, Any]:
    store = embedded_store(objects)
    if call.parameters.get("IfMatchInitiatedTime") is not None:
        raise s3_error("NotImplemented", "IfMatchInitiatedTime: of conditions only ETags are offered")
    Uploads(store).abort(authorized_bucket(call, store), call.parameters["Key"], call.parameters["UploadId"])
    return {}


def _upload(call: Call, uploads: Uploads, bucket: str) -> Upload:
    return uploads.find(bucket, call.parameters["Key"], call.parameters["UploadId"])


def _parse_part(entry: Mapping[str, Any]) -> CompletedPart:
    if entry.get("PartNumber") is None or entry.get("ETag") is None:
        raise s3_error("MalformedXML")
    sent = [str(entry[f"Checksum{name}"]) for name in ALGORITHMS if entry.get(f"Checksum{name}")]
    return CompletedPart(int(entry["PartNumber"]), strip_etag(entry["ETag"]), sent[0] if sent else "")


def _checksum(upload: Upload, part: Part) -> dict[str, str]:
    return {f"Checksum{upload.algorithm}": part.checksum} if upload.algorithm else {}


OPERATIONS: Mapping[str, Operation] = {
    "CreateMultipartUpload": create_multipart_upload,
    "UploadPart": upload_part,
    "UploadPartCopy": upload_part_copy,
    "CompleteMultipartUpload": complete_multipart_upload,
    "AbortMultipartUpload": abort_multipart_upload,
}
