"""Multipart uploads: parts arrive in any order and may be replaced; completion makes an object of them without copying.

The parts' files become the segments of a content with the upload's id. A repeated completion gets the first one's
response.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import sqlalchemy as sa

from luthier.objects.checksums import (
    BodyChecksums,
    Checksum,
    checksum_from_row,
    multipart_checksum,
    multipart_etag,
    multipart_kind,
)
from luthier.objects.conditions import UNCONDITIONAL, WriteCondition
from luthier.objects.errors import disk_errors, s3_error
from luthier.objects.names import key_bytes
from luthier.objects.queries import Attributes, Segment, StoredObject, add_content, find_bucket, put_object
from luthier.objects.store import EmbeddedObjectStore
from luthier.objects.tables import parts, uploads

MIN_PART_BYTES = 5 * 1024**2
MAX_PARTS = 10_000
ID = re.compile("[0-9a-f]{32}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """An upload's row; `etag` and `checksum` are the object's after completion, `created` in seconds since 1970."""

    id: str
    bucket: str
    key: str
    created: float
    attributes: Attributes = field(default_factory=Attributes)
    algorithm: str = ""
    kind: str = ""
    etag: str = ""
    checksum: Checksum | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A stored part; `checksum` is base64, of the upload's algorithm, empty if it has none."""

    number: int
    blob: str
    size: int
    etag: str
    checksum: str
    modified: float


@dataclass(frozen=True, slots=True)
class CompletedPart:
    """A part as listed in a completion; an empty checksum is not compared."""

    number: int
    etag: str
    checksum: str = ""


@dataclass(frozen=True, slots=True)
class ExpectedObject:
    """What a completion declares of the object: its size and checksum, if any, and a condition on the key."""

    size: int | None = None
    checksum: str = ""
    condition: WriteCondition = UNCONDITIONAL


class Uploads:
    """A store's uploads. WireError NoSuchUpload for an unknown, aborted or (except to `complete`) completed one."""

    def __init__(self, store: EmbeddedObjectStore) -> None:
        self.store = store

    def begin(self, bucket: str, key: str, attributes: Attributes, algorithm: str = "", kind: str = "") -> Upload:
        """Begin an upload; `algorithm` and `kind` (checksums.FULL or COMPOSITE) are of the object's checksum."""
        self.store.check_writable(bucket)
        new = Upload(
            id=uuid.uuid4().hex,
            bucket=bucket,
            key=key,
            created=time.time(),
            attributes=attributes,
            algorithm=algorithm,
            kind=multipart_kind(algorithm, kind),
        )

        def work(connection: sa.Connection) -> None:
            if find_bucket(connection, bucket) is None:
                raise s3_error("NoSuchBucket")
            connection.execute(uploads.insert().values(
                id=new.id, bucket=bucket, key=key_bytes(key), created=new.created, attributes=dict(attributes.members),
                metadata=dict(attributes.metadata), tags=dict(attributes.tags), algorithm=algorithm,
                checksum_type=new.kind, etag="", checksum=[],
            ))  # fmt: skip

        with disk_errors():
            self.store.database.run_transaction(work)
        return new

    def find(self, bucket: str, key: str, upload: str) -> Upload:
        """An unfinished upload."""
        with self.store.database.read() as connection:
            found = _find(connection, bucket, key, upload)
        if found is None or found.etag:
            raise s3_error("NoSuchUpload")
        return found

    def put_part(
        self, upload: Upload, number: int, chunks: Iterable[bytes], *, expected: BodyChecksums | None = None,
        size: int | None = None,
    ) -> Part:  # fmt: skip
        """Store a part or replace it; it is on disk when this returns."""
        if not 1 <= number <= MAX_PARTS:
            raise s3_error("InvalidArgument", f"Part number must be an integer between 1 and {MAX_PARTS}, inclusive")
        expected = expected or BodyChecksums()
        with self.store.receive_body(chunks, expected, size, upload.algorithm) as (blob, digest):
            checksum = digest.value(upload.algorithm) if upload.algorithm else ""
            new = Part(
                number=number,
                blob=blob.name,
                size=digest.size,
                etag=digest.etag,
                checksum=checksum,
                modified=time.time(),
            )
            with blob.keep_on_commit():
                replaced = self.store.database.run_transaction(lambda connection: _put_part(connection, upload, new))
        self.store.discard(replaced)
        return new

    def complete(
        self, bucket: str, key: str, upload: str, listed: Sequence[CompletedPart], object_: ExpectedObject
    ) -> Upload:
        """Make the object; on disk when this returns. WireErrors as in S3 (InvalidPart, InvalidPartOrder, ...)."""
        if not listed:
            raise s3_error("MalformedXML")
        if any(later.number <= sooner.number for sooner, later in pairwise(listed)):
            raise s3_error("InvalidPartOrder")

        def work(connection: sa.Connection) -> tuple[Upload, str | None, list[str]]:
            found = _find(connection, bucket, key, upload, for_update=True)
            if found is None:
                raise s3_error("NoSuchUpload")
            if found.etag:
                return found, None, []
            return _complete(connection, found, listed, object_)

        with disk_errors():
            done, replaced, unused = self.store.database.run_transaction(work)
        if done.etag != _etag(listed):
            raise s3_error("InvalidPart")
        self.store.collect(replaced)
        self.store.discard(unused)
        return done

    def abort(self, bucket: str, key: str, upload: str) -> None:
        """Delete an upload and its parts."""

        def work(connection: sa.Connection) -> list[str]:
            found = _find(connection, bucket, key, upload, for_update=True)
            if found is None or found.etag:
                raise s3_error("NoSuchUpload")
            deleted = parts.delete().where(parts.c.upload == upload).returning(parts.c.blob)
            names = list(connection.execute(deleted).scalars())
            connection.execute(uploads.delete().where(uploads.c.id == upload))
            return names

        self.store.discard(self.store.database.run_transaction(work))

    def parts(self, upload: Upload, after: int, limit: int) -> list[Part]:
        """At most `limit` parts with numbers above `after`, in order."""
        query = sa.select(*_PART).where(parts.c.upload == upload.id, parts.c.number > after)
        with self.store.database.read() as connection:
            return [Part(**row._mapping) for row in connection.execute(query.order_by(parts.c.number).limit(limit))]

    def list_unfinished(self, bucket: str, prefix: bytes, start: tuple[bytes, str]) -> Iterator[Upload]:
        """The unfinished uploads of a bucket after (key, id), in order."""
        key, number = start
        later = (uploads.c.key > key) | ((uploads.c.key == key) & (uploads.c.id > number))
        query = sa.select(uploads).where(uploads.c.bucket == bucket, uploads.c.etag == "", uploads.c.key >= prefix)
        with self.store.database.read() as connection:
            for row in connection.execute(query.where(later).order_by(uploads.c.key, uploads.c.id)):
                if not bytes(row.key).startswith(prefix):
                    return
                yield _upload(row)


_PART = [parts.c[name] for name in ("number", "blob", "size", "etag", "checksum", "modified")]


def _find(connection: sa.Connection, bucket: str, key: str, upload: str, *, for_update: bool = False) -> Upload | None:
    if not ID.fullmatch(upload):
        return None
    where = uploads.c.id == upload, uploads.c.bucket == bucket, uploads.c.key == key_bytes(key)
    query = sa.select(uploads).where(*where)
    row = connection.execute(query.with_for_update() if for_update else query).one_or_none()
    return _upload(row) if row else None


def _upload(row: sa.Row[tuple[object, ...]]) -> Upload:
    return Upload(
        id=row.id, bucket=row.bucket, key=bytes(row.key).decode("utf-8"), created=row.created,
        attributes=Attributes(row.attributes, row.metadata, row.tags), algorithm=row.algorithm, kind=row.checksum_type,
        etag=row.etag, checksum=checksum_from_row(row.checksum),
    )  # fmt: skip


def _put_part(connection: sa.Connection, upload: Upload, new: Part) -> list[str]:
    """Insert or replace a part; return the files of the replaced one."""
    found = _find(connection, upload.bucket, upload.key, upload.id, for_update=True)
    if found is None or found.etag:
        raise s3_error("NoSuchUpload")
    where = parts.c.upload == upload.id, parts.c.number == new.number
    names = list(connection.execute(parts.delete().where(*where).returning(parts.c.blob)).scalars())
    connection.execute(parts.insert().values(
        upload=upload.id, number=new.number, blob=new.blob, size=new.size, etag=new.etag, checksum=new.checksum,
        modified=new.modified,
    ))  # fmt: skip
    return names


def _complete(
    connection: sa.Connection, upload: Upload, listed: Sequence[CompletedPart], object_: ExpectedObject
) -> tuple[Upload, str | None, list[str]]:
    """The completed upload, the content that its object replaces, and the files of unused parts."""
    query = sa.select(*_PART).where(parts.c.upload == upload.id)
    stored = {row.number: Part(**row._mapping) for row in connection.execute(query)}
    selected = _select_parts(stored, listed)
    checksum = None
    if upload.algorithm:
        checksum = multipart_checksum(upload.algorithm, upload.kind, [(part.checksum, part.size) for part in selected])
    size = sum(part.size for part in selected)
    if object_.size is not None and object_.size != size:
        raise s3_error(
            "InvalidRequest", f"The provided 'x-amz-mp-object-size' header does not match the size {size:,}."
        )
    if object_.checksum and not checksum:
        raise s3_error("InvalidRequest", "The upload was created without a checksum algorithm.")
    if checksum and object_.checksum and object_.checksum not in (checksum.value, checksum.value.partition("-")[0]):
        raise s3_error("BadDigest", f"The {upload.algorithm} you specified did not match the calculated checksum.")
    pieces, start = [], 0
    for part in selected:
        pieces.append(Segment(part.blob, start, part.size, part.checksum))
        start += part.size
    new = StoredObject(
        bucket=upload.bucket,
        key=upload.key,
        content=upload.id,
        size=size,
        etag=_etag(listed),
        modified=time.time(),
        parts=len(selected),
        attributes=upload.attributes,
        checksum=checksum,
    )
    add_content(connection, upload.id, pieces)
    replaced = put_object(connection, new, object_.condition)
    connection.execute(parts.delete().where(parts.c.upload == upload.id))
    row = {"etag": new.etag, "checksum": checksum.to_row() if checksum else []}
    connection.execute(uploads.update().where(uploads.c.id == upload.id).values(row))
    used = {part.blob for part in selected}
    unused = [part.blob for part in stored.values() if part.blob not in used]
    return replace(upload, etag=new.etag, checksum=checksum), replaced, unused


def _select_parts(stored: dict[int, Part], listed: Sequence[CompletedPart]) -> list[Part]:
    selected = []
    for item in listed:
        part = stored.get(item.number)
        if part is None or part.etag != item.etag or (item.checksum and part.checksum not in ("", item.checksum)):
            raise s3_error("InvalidPart")
        selected.append(part)
    for part in selected[:-1]:
        if part.size < MIN_PART_BYTES:
            raise s3_error("EntityTooSmall")
    return selected


def _etag(listed: Sequence[CompletedPart]) -> str:
    try:
        return multipart_etag([item.etag for item in listed])
    except ValueError:
        raise s3_error("InvalidPart") from None
