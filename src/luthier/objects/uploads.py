"""Multipart uploads: parts come in any order, any number of times; completion makes an object of them, moving no byte.

The parts' files become the segments of a content that has the upload's id. A repeated completion is answered like the
first.
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
    Checksum,
    Demand,
    multipart_checksum,
    multipart_etag,
    multipart_kind,
    of_row,
)
from luthier.objects.conditions import ANYHOW, Guard
from luthier.objects.errors import disk, refusal
from luthier.objects.names import key_bytes
from luthier.objects.queries import Attributes, Object, Segment, add_content, find_bucket, put_object
from luthier.objects.store import EmbeddedObjectStore
from luthier.objects.tables import parts, uploads

MIN_PART = 5 * 1024**2
MOST_PARTS = 10_000
ID = re.compile("[0-9a-f]{32}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """One upload; `etag` and `checksum` are the object's, once it is completed. `created` in seconds since 1970."""

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
    """One part as it is stored; `checksum` is base64, of the upload's algorithm, empty where that has none."""

    number: int
    blob: str
    size: int
    etag: str
    checksum: str
    modified: float


@dataclass(frozen=True, slots=True)
class Listed:
    """One part as a completion lists it; an empty checksum is not compared."""

    number: int
    etag: str
    checksum: str = ""


@dataclass(frozen=True, slots=True)
class Whole:
    """What a completion says of the object: size and checksum, where it says them, and what must hold of the key."""

    size: int | None = None
    checksum: str = ""
    guard: Guard = ANYHOW


class Uploads:
    """The uploads of a store. WireError NoSuchUpload for one that is not, was aborted, or (to most) completed."""

    def __init__(self, store: EmbeddedObjectStore) -> None:
        self.store = store

    def begin(self, bucket: str, key: str, attributes: Attributes, algorithm: str = "", kind: str = "") -> Upload:
        """A new upload; `algorithm` and `kind` (checksums.FULL or COMPOSITE) are of the object's checksum."""
        self.store.writable(bucket)
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
                raise refusal("NoSuchBucket")
            connection.execute(uploads.insert().values(
                id=new.id, bucket=bucket, key=key_bytes(key), created=new.created, attributes=dict(attributes.members),
                metadata=dict(attributes.metadata), tags=dict(attributes.tags), algorithm=algorithm,
                checksum_type=new.kind, etag="", checksum=[],
            ))  # fmt: skip

        with disk():
            self.store.database.settle(work)
        return new

    def find(self, bucket: str, key: str, upload: str) -> Upload:
        """An upload that goes on."""
        with self.store.database.read() as connection:
            found = _find(connection, bucket, key, upload)
        if found is None or found.etag:
            raise refusal("NoSuchUpload")
        return found

    def put_part(
        self, upload: Upload, number: int, chunks: Iterable[bytes], *, demand: Demand | None = None,
        size: int | None = None,
    ) -> Part:  # fmt: skip
        """Store a part, or another in its place; on disk when this returns."""
        if not 1 <= number <= MOST_PARTS:
            raise refusal("InvalidArgument", f"Part number must be an integer between 1 and {MOST_PARTS}, inclusive")
        demand = demand or Demand()
        with self.store.received(chunks, demand, size, upload.algorithm) as (blob, digest):
            checksum = digest.value(upload.algorithm) if upload.algorithm else ""
            new = Part(
                number=number,
                blob=blob.name,
                size=digest.size,
                etag=digest.etag,
                checksum=checksum,
                modified=time.time(),
            )
            with blob.settled():
                replaced = self.store.database.settle(lambda connection: _put_part(connection, upload, new))
        self.store.discard(replaced)
        return new

    def complete(self, bucket: str, key: str, upload: str, listed: Sequence[Listed], whole: Whole) -> Upload:
        """Make the object; on disk when this returns. WireErrors InvalidPart, InvalidPartOrder, EntityTooSmall, ..."""
        if not listed:
            raise refusal("MalformedXML")
        if any(later.number <= sooner.number for sooner, later in pairwise(listed)):
            raise refusal("InvalidPartOrder")

        def work(connection: sa.Connection) -> tuple[Upload, str | None, list[str]]:
            found = _find(connection, bucket, key, upload, hold=True)
            if found is None:
                raise refusal("NoSuchUpload")
            if found.etag:
                return found, None, []
            return _complete(connection, found, listed, whole)

        with disk():
            done, replaced, unused = self.store.database.settle(work)
        if done.etag != _etag(listed):
            raise refusal("InvalidPart")
        self.store.collect(replaced)
        self.store.discard(unused)
        return done

    def abort(self, bucket: str, key: str, upload: str) -> None:
        """Forget an upload and its parts."""

        def work(connection: sa.Connection) -> list[str]:
            found = _find(connection, bucket, key, upload, hold=True)
            if found is None or found.etag:
                raise refusal("NoSuchUpload")
            gone = parts.delete().where(parts.c.upload == upload).returning(parts.c.blob)
            names = list(connection.execute(gone).scalars())
            connection.execute(uploads.delete().where(uploads.c.id == upload))
            return names

        self.store.discard(self.store.database.settle(work))

    def parts(self, upload: Upload, after: int, limit: int) -> list[Part]:
        """At most `limit` parts whose numbers are above `after`, by number."""
        query = sa.select(*_PART).where(parts.c.upload == upload.id, parts.c.number > after)
        with self.store.database.read() as connection:
            return [Part(**row._mapping) for row in connection.execute(query.order_by(parts.c.number).limit(limit))]

    def going_on(self, bucket: str, prefix: bytes, start: tuple[bytes, str]) -> Iterator[Upload]:
        """The uploads of a bucket after (key, id), by key and id."""
        key, number = start
        later = (uploads.c.key > key) | ((uploads.c.key == key) & (uploads.c.id > number))
        query = sa.select(uploads).where(uploads.c.bucket == bucket, uploads.c.etag == "", uploads.c.key >= prefix)
        with self.store.database.read() as connection:
            for row in connection.execute(query.where(later).order_by(uploads.c.key, uploads.c.id)):
                if not bytes(row.key).startswith(prefix):
                    return
                yield _upload(row)


_PART = [parts.c[name] for name in ("number", "blob", "size", "etag", "checksum", "modified")]


def _find(connection: sa.Connection, bucket: str, key: str, upload: str, *, hold: bool = False) -> Upload | None:
    if not ID.fullmatch(upload):
        return None
    where = uploads.c.id == upload, uploads.c.bucket == bucket, uploads.c.key == key_bytes(key)
    query = sa.select(uploads).where(*where)
    row = connection.execute(query.with_for_update() if hold else query).one_or_none()
    return _upload(row) if row else None


def _upload(row: sa.Row[tuple[object, ...]]) -> Upload:
    return Upload(
        id=row.id, bucket=row.bucket, key=bytes(row.key).decode("utf-8"), created=row.created,
        attributes=Attributes(row.attributes, row.metadata, row.tags), algorithm=row.algorithm, kind=row.checksum_type,
        etag=row.etag, checksum=of_row(row.checksum),
    )  # fmt: skip


def _put_part(connection: sa.Connection, upload: Upload, new: Part) -> list[str]:
    """Let `new` be the part of its number; return the files of the one before."""
    found = _find(connection, upload.bucket, upload.key, upload.id, hold=True)
    if found is None or found.etag:
        raise refusal("NoSuchUpload")
    where = parts.c.upload == upload.id, parts.c.number == new.number
    names = list(connection.execute(parts.delete().where(*where).returning(parts.c.blob)).scalars())
    connection.execute(parts.insert().values(
        upload=upload.id, number=new.number, blob=new.blob, size=new.size, etag=new.etag, checksum=new.checksum,
        modified=new.modified,
    ))  # fmt: skip
    return names


def _complete(
    connection: sa.Connection, upload: Upload, listed: Sequence[Listed], whole: Whole
) -> tuple[Upload, str | None, list[str]]:
    """The completed upload, the content that its object replaces, the files of parts that are not in it."""
    query = sa.select(*_PART).where(parts.c.upload == upload.id)
    stored = {row.number: Part(**row._mapping) for row in connection.execute(query)}
    chosen = _chosen(stored, listed)
    checksum = None
    if upload.algorithm:
        checksum = multipart_checksum(upload.algorithm, upload.kind, [(part.checksum, part.size) for part in chosen])
    size = sum(part.size for part in chosen)
    if whole.size is not None and whole.size != size:
        raise refusal("InvalidRequest", f"The provided 'x-amz-mp-object-size' header does not match the size {size:,}.")
    if whole.checksum and not checksum:
        raise refusal("InvalidRequest", "The upload was created without a checksum algorithm.")
    if checksum and whole.checksum and whole.checksum not in (checksum.value, checksum.value.partition("-")[0]):
        raise refusal("BadDigest", f"The {upload.algorithm} you specified did not match the calculated checksum.")
    pieces, start = [], 0
    for part in chosen:
        pieces.append(Segment(part.blob, start, part.size, part.checksum))
        start += part.size
    new = Object(
        bucket=upload.bucket,
        key=upload.key,
        content=upload.id,
        size=size,
        etag=_etag(listed),
        modified=time.time(),
        parts=len(chosen),
        attributes=upload.attributes,
        checksum=checksum,
    )
    add_content(connection, upload.id, pieces)
    replaced = put_object(connection, new, whole.guard)
    connection.execute(parts.delete().where(parts.c.upload == upload.id))
    row = {"etag": new.etag, "checksum": checksum.row() if checksum else []}
    connection.execute(uploads.update().where(uploads.c.id == upload.id).values(row))
    used = {part.blob for part in chosen}
    unused = [part.blob for part in stored.values() if part.blob not in used]
    return replace(upload, etag=new.etag, checksum=checksum), replaced, unused


def _chosen(stored: dict[int, Part], listed: Sequence[Listed]) -> list[Part]:
    chosen = []
    for one in listed:
        part = stored.get(one.number)
        if part is None or part.etag != one.etag or (one.checksum and part.checksum not in ("", one.checksum)):
            raise refusal("InvalidPart")
        chosen.append(part)
    for part in chosen[:-1]:
        if part.size < MIN_PART:
            raise refusal("EntityTooSmall")
    return chosen


def _etag(listed: Sequence[Listed]) -> str:
    try:
        return multipart_etag([one.etag for one in listed])
    except ValueError:
        raise refusal("InvalidPart") from None
