"""Forward S3 operations to a remote S3, with the server's credentials.

The caller is authenticated by Luthier's own keys; its signature and account are not forwarded. A body is stored in a
temporary file and verified before it is sent on.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from typing import IO, Any

from botocore import xform_name
from botocore.exceptions import BotoCoreError, ClientError, EndpointConnectionError, HTTPClientError, NoCredentialsError

from luthier.objects.blobs import CHUNK
from luthier.objects.checksums import Digest
from luthier.objects.errors import disk_errors, s3_error
from luthier.objects.forwarding_store import ForwardingObjectStore
from luthier.objects.names import check_bucket_name, parse_copy_source
from luthier.objects.parameters import body
from luthier.objects.store import EmbeddedObjectStore
from luthier.protocol import model
from luthier.protocol.call import Call
from luthier.protocol.errors import WireError

OWNERS = ("ExpectedBucketOwner", "ExpectedSourceBucketOwner")
_log = logging.getLogger(__name__)


def forward(call: Call, objects: ForwardingObjectStore) -> dict[str, Any]:
    """The remote S3's result; WireError with its code, message and status for its errors."""
    parameters = dict(call.parameters)
    if "Bucket" in parameters:
        check_bucket_name(parameters["Bucket"])  # an ARN could select another host
    for name in OWNERS:
        if parameters.pop(name, call.account) != call.account:
            raise s3_error("AccessDenied")
    if "CopySource" in parameters:  # encoded again by botocore
        bucket, key = parse_copy_source(parameters["CopySource"])
        parameters["CopySource"] = {"Bucket": check_bucket_name(bucket), "Key": key}
    with ExitStack() as stack:
        if _has_body(call):
            parameters |= _receive_to_file(call, objects.virtual_store, stack)
        answer = _send(objects, call.operation, parameters)
    answer.pop("ResponseMetadata", None)
    if answer.get("ExpiresString"):
        answer["Expires"] = answer.pop("ExpiresString")
    if hasattr(answer.get("Body"), "iter_chunks"):
        answer["Body"] = _ForwardedBody(answer["Body"])
    return answer


def _has_body(call: Call) -> bool:
    shape = model.operation("s3", call.operation).input_shape
    return shape is not None and "Body" in shape.members


def _receive_to_file(call: Call, virtual_store: EmbeddedObjectStore, stack: ExitStack) -> dict[str, Any]:
    """The body as a temporary file, with its checksum; raises the same WireErrors as the embedded store."""
    chunks, expected, size = body(call)
    if size:
        virtual_store.blobs.check_free_space(size)
    digest = Digest([expected.algorithm])
    with disk_errors():
        file: IO[bytes] = stack.enter_context(tempfile.TemporaryFile(dir=virtual_store.blobs.root))  # noqa: SIM115 - entered here
        for chunk in chunks:
            digest.update(chunk)
            file.write(chunk)
        file.seek(0)
    if size is not None and digest.size != size:
        raise s3_error("IncompleteBody")
    digest.verify(expected)
    known = {f"Checksum{expected.algorithm}": digest.value(expected.algorithm)} if expected.algorithm else {}
    return {"Body": file, "ContentLength": digest.size, "ChecksumAlgorithm": None} | known


def _send(objects: ForwardingObjectStore, operation: str, parameters: dict[str, Any]) -> dict[str, Any]:
    sent = {name: value for name, value in parameters.items() if value is not None}
    try:
        answer: dict[str, Any] = getattr(objects.client, xform_name(operation))(**sent)
    except ClientError as error:
        error_fields = error.response["Error"]
        status = error.response["ResponseMetadata"]["HTTPStatusCode"]
        raise WireError(error_fields.get("Code", str(status)), error_fields.get("Message", ""), status) from None
    except NoCredentialsError:
        text = f"the server has no credentials for {objects.endpoint}; set them where luthier serve is started"
        raise s3_error("AccessDenied", text) from None
    except (HTTPClientError, EndpointConnectionError) as error:
        _log.warning("%s: %s", objects.endpoint, error)
        text = f"The object store at {objects.endpoint} does not answer"
        raise WireError("ServiceUnavailable", text, 503) from None
    except BotoCoreError as error:
        raise s3_error("InvalidRequest", " ".join(str(error).split())) from None
    return answer


class _ForwardedBody:
    """The chunks of an object; `close`, or reading all of them, returns the connection to the pool."""

    def __init__(self, body: Any) -> None:
        self._body = body
        self._chunks: Iterator[bytes] = body.iter_chunks(CHUNK)

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        return next(self._chunks)

    def close(self) -> None:
        self._body.close()
