"""S3's operations on multipart uploads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from luthier.objects.checksums import ALGORITHMS, known
from luthier.objects.conditions import Guard, bare, check_read
from luthier.objects.errors import refusal
from luthier.objects.parameters import Operation, allowed, attributes, body, moment, quoted, source, store_of
from luthier.objects.ranges import parse_copy_range
from luthier.objects.store import ObjectStore
from luthier.objects.uploads import Listed, Part, Upload, Uploads, Whole
from luthier.protocol.call import Call


def create_multipart_upload(call: Call, objects: ObjectStore) -> dict[str, Any]:
    store, parameters = store_of(objects), call.parameters
    algorithm = known(parameters.get("ChecksumAlgorithm") or "")
    begun = Uploads(store).begin(
        allowed(call, store), parameters["Key"], attributes(parameters), algorithm, parameters.get("ChecksumType") or ""
    )
    answer = {"Bucket": begun.bucket, "Key": begun.key, "UploadId": begun.id}
    return answer | ({"ChecksumAlgorithm": algorithm, "ChecksumType": begun.kind} if algorithm else {})


def upload_part(call: Call, objects: ObjectStore) -> dict[str, Any]:
    store = store_of(objects)
    upload = _upload(call, Uploads(store), allowed(call, store))
    chunks, demand, size = body(call)
    part = Uploads(store).put_part(upload, call.parameters["PartNumber"], chunks, demand=demand, size=size)
    answer = {"ETag": quoted(part.etag), **_checksum(upload, part)}
    if demand.algorithm and demand.algorithm != upload.algorithm and demand.expected:
        answer[f"Checksum{demand.algorithm}"] = demand.expected  # verified, though the upload keeps another
    return answer


def upload_part_copy(call: Call, objects: ObjectStore) -> dict[str, Any]:
    store, parameters = store_of(objects), call.parameters
    upload = _upload(call, Uploads(store), allowed(call, store))
    with source(call, store) as stream:
        check_read(parameters, stream.object.etag, stream.object.modified, "CopySource")
        if parameters.get("CopySourceRange"):
            stream.narrow(parse_copy_range(parameters["CopySourceRange"], stream.object.size))
        part = Uploads(store).put_part(upload, parameters["PartNumber"], stream, size=stream.span.size)
    result = {"ETag": quoted(part.etag), "LastModified": moment(part.modified), **_checksum(upload, part)}
    return {"CopyPartResult": result}


def complete_multipart_upload(call: Call, objects: ObjectStore) -> dict[str, Any]:
    store, parameters = store_of(objects), call.parameters
    listed = [_listed(entry) for entry in (parameters.get("MultipartUpload") or {}).get("Parts") or []]
    sent = [str(parameters[f"Checksum{name}"]) for name in ALGORITHMS if parameters.get(f"Checksum{name}")]
    whole = Whole(parameters.get("MpuObjectSize"), sent[0] if sent else "", Guard.of(parameters))
    bucket = allowed(call, store)
    done = Uploads(store).complete(bucket, parameters["Key"], parameters["UploadId"], listed, whole)
    location = f"http://{call.request.headers.get('host', '')}/{bucket}/{quote(done.key)}"
    answer = {"Location": location, "Bucket": bucket, "Key": done.key, "ETag": quoted(done.etag)}
    return answer | (done.checksum.members() if done.checksum else {})


def abort_multipart_upload(call: Call, objects: ObjectStore) -> dict[str, Any]:
    store = store_of(objects)
    if call.parameters.get("IfMatchInitiatedTime") is not None:
        raise refusal("NotImplemented", "IfMatchInitiatedTime: of conditions only ETags are offered")
    Uploads(store).abort(allowed(call, store), call.parameters["Key"], call.parameters["UploadId"])
    return {}


def _upload(call: Call, uploads: Uploads, bucket: str) -> Upload:
    return uploads.find(bucket, call.parameters["Key"], call.parameters["UploadId"])


def _listed(entry: Mapping[str, Any]) -> Listed:
    if entry.get("PartNumber") is None or entry.get("ETag") is None:
        raise refusal("MalformedXML")
    sent = [str(entry[f"Checksum{name}"]) for name in ALGORITHMS if entry.get(f"Checksum{name}")]
    return Listed(int(entry["PartNumber"]), bare(entry["ETag"]), sent[0] if sent else "")


def _checksum(upload: Upload, part: Part) -> dict[str, str]:
    return {f"Checksum{upload.algorithm}": part.checksum} if upload.algorithm else {}


OPERATIONS: Mapping[str, Operation] = {
    "CreateMultipartUpload": create_multipart_upload,
    "UploadPart": upload_part,
    "UploadPartCopy": upload_part_copy,
    "CompleteMultipartUpload": complete_multipart_upload,
    "AbortMultipartUpload": abort_multipart_upload,
}
