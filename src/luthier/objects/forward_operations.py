"""S3's operations on buckets elsewhere: the same operation, asked there with the server's credentials.

The caller was let in by Luthier's own rules; its signature and its account mean nothing there and stay here. A body is
on disk, and is what its checksum says, before the first byte of it is passed on.
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
from luthier.objects.errors import disk, refusal
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
    """What the other S3 answers to the call; WireError with its own code, message and status where it refuses."""
    asked = dict(call.parameters)
    if "Bucket" in asked:
        check_bucket_name(asked["Bucket"])  # an ARN could lead to another host
    for name in OWNERS:
        if asked.pop(name, call.account) != call.account:
            raise refusal("AccessDenied")
    if "CopySource" in asked:  # its client writes it out anew
        bucket, key = parse_copy_source(asked["CopySource"])
        asked["CopySource"] = {"Bucket": check_bucket_name(bucket), "Key": key}
    with ExitStack() as stack:
        if _streams(call):
            asked |= _received(call, objects.made, stack)
        answer = _asked(objects, call.operation, asked)
    answer.pop("ResponseMetadata", None)
    if answer.get("ExpiresString"):
        answer["Expires"] = answer.pop("ExpiresString")
    if hasattr(answer.get("Body"), "iter_chunks"):
        answer["Body"] = _Body(answer["Body"])
    return answer


def _streams(call: Call) -> bool:
    shape = model.operation("s3", call.operation).input_shape
    return shape is not None and "Body" in shape.members


def _received(call: Call, made: EmbeddedObjectStore, stack: ExitStack) -> dict[str, Any]:
    """The body as a file, with the checksum that was sent before or after it; WireErrors as of the embedded store."""
    chunks, demand, size = body(call)
    if size:
        made.blobs.check_room(size)
    digest = Digest([demand.algorithm])
    with disk():
        file: IO[bytes] = stack.enter_context(tempfile.TemporaryFile(dir=made.blobs.root))  # noqa: SIM115 - entered here
        for chunk in chunks:
            digest.update(chunk)
            file.write(chunk)
        file.seek(0)
    if size is not None and digest.size != size:
        raise refusal("IncompleteBody")
    digest.verify(demand)
    known = {f"Checksum{demand.algorithm}": digest.value(demand.algorithm)} if demand.algorithm else {}
    return {"Body": file, "ContentLength": digest.size, "ChecksumAlgorithm": None} | known


def _asked(objects: ForwardingObjectStore, operation: str, asked: dict[str, Any]) -> dict[str, Any]:
    given = {name: value for name, value in asked.items() if value is not None}
    try:
        answer: dict[str, Any] = getattr(objects.client, xform_name(operation))(**given)
    except ClientError as error:
        said = error.response["Error"]
        status = error.response["ResponseMetadata"]["HTTPStatusCode"]
        raise WireError(said.get("Code", str(status)), said.get("Message", ""), status) from None
    except NoCredentialsError:
        text = f"the server has no credentials for {objects.endpoint}; set them where luthier serve is started"
        raise refusal("AccessDenied", text) from None
    except (HTTPClientError, EndpointConnectionError) as error:
        _log.warning("%s: %s", objects.endpoint, error)
        text = f"The object store at {objects.endpoint} does not answer"
        raise WireError("ServiceUnavailable", text, 503) from None
    except BotoCoreError as error:
        raise refusal("InvalidRequest", " ".join(str(error).split())) from None
    return answer


class _Body:
    """The chunks of an object; the connection they come by is free again when they are read, or on `close`."""

    def __init__(self, body: Any) -> None:
        self._body = body
        self._chunks: Iterator[bytes] = body.iter_chunks(CHUNK)

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        return next(self._chunks)

    def close(self) -> None:
        self._body.close()
