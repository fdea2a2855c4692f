"""The statements of the object store: each function is a step of a transaction that its caller holds.

SQLite has one writer at a time; on PostgreSQL the rows that a write builds on are locked, and a foreign key or primary
key that another writer got ahead of ends in an IntegrityError, on which the caller begins anew.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from luthier.jobs import database
from luthier.objects.checksums import Checksum, of_row
from luthier.objects.conditions import Guard
from luthier.objects.tables import buckets, contents, objects, parts, segments, uploads

ATTEMPTS = 8  # of a transaction that other writers keep getting ahead of
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Bucket:
    """`created` in seconds since 1970."""

    name: str
    account: str
    region: str
    created: float


@dataclass(frozen=True, slots=True)
class Attributes:
    """What is kept beside an object's bytes: members of PutObject that are given back, user metadata, tags."""

    members: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Object:
    """One object; `parts` is 0 unless it came of a multipart upload, `modified` in seconds since 1970."""

    bucket: str
    key: str
    content: str
    size: int
    etag: str
    modified: float
    parts: int = 0
    attributes: Attributes = field(default_factory=Attributes)
    checksum: Checksum | None = None


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of a content: `size` bytes of the file `blob`, from `start` on in the whole."""

    blob: str
    start: int
    size: int
    checksum: str = ""


class Database:
    """Transactions on an engine."""

    def __init__(self, engine: sa.Engine) -> None:
        self.engine = engine

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        with database.writing(self.engine) as connection:
            yield connection

    def settle(self, work: Callable[[sa.Connection], T]) -> T:
        """Run `work` in a transaction, again as long as other writers get ahead of it."""
        for attempt in range(ATTEMPTS):
            try:
                with self.write() as connection:
                    return work(connection)
            except IntegrityError:
                if attempt == ATTEMPTS - 1:
                    raise
        raise AssertionError("unreachable")

    def read(self) -> sa.Connection:
        """To be used as a context; each statement sees the latest commit."""
        return self.engine.connect()


def find_bucket(connection: sa.Connection, name: str) -> Bucket | None:
    row = connection.execute(sa.select(buckets).where(buckets.c.name == name)).one_or_none()
    return Bucket(*row) if row else None


def find_object(connection: sa.Connection, bucket: str, key: bytes, *, hold: bool = False) -> Object | None:
    query = sa.select(objects).where(objects.c.bucket == bucket, objects.c.key == key)
    row = connection.execute(query.with_for_update() if hold else query).one_or_none()
    return object_of(row) if row else None


def object_of(row: sa.Row[Any]) -> Object:
    return Object(
        bucket=row.bucket, key=bytes(row.key).decode("utf-8"), content=row.content, size=row.size, etag=row.etag,
        modified=row.modified, parts=row.parts, attributes=Attributes(row.attributes, row.metadata, row.tags),
        checksum=of_row(row.checksum),
    )  # fmt: skip


def list_objects(connection: sa.Connection, bucket: str, start: bytes, end: bytes | None, limit: int) -> list[Object]:
    """Objects whose keys are not before `start` and, where it is given, before `end`, in S3's order."""
    query = sa.select(objects).where(objects.c.bucket == bucket, objects.c.key >= start)
    if end is not None:
        query = query.where(objects.c.key < end)
    return [object_of(row) for row in connection.execute(query.order_by(objects.c.key).limit(limit))]


def put_object(connection: sa.Connection, new: Object, guard: Guard) -> str | None:
    """Let `new` be what its key holds, if `guard` allows; return the content that was there."""
    key = new.key.encode("utf-8")
    present = find_object(connection, new.bucket, key, hold=True)
    guard.check(present.etag if present else None)
    values = {
        "content": new.content, "size": new.size, "etag": new.etag, "modified": new.modified, "parts": new.parts,
        "attributes": dict(new.attributes.members), "metadata": dict(new.attributes.metadata),
        "tags": dict(new.attributes.tags), "checksum": new.checksum.row() if new.checksum else [],
    }  # fmt: skip
    if present:
        connection.execute(objects.update().where(objects.c.bucket == new.bucket, objects.c.key == key).values(values))
        return present.content
    connection.execute(objects.insert().values(bucket=new.bucket, key=key, **values))
    return None


def delete_object(connection: sa.Connection, bucket: str, key: bytes, guard: Guard) -> str | None:
    """Forget what a key holds, if `guard` allows; return the content that was there."""
    present = find_object(connection, bucket, key, hold=True)
    if present is None:
        return None
    guard.check(present.etag)
    connection.execute(objects.delete().where(objects.c.bucket == bucket, objects.c.key == key))
    return present.content


def set_tags(connection: sa.Connection, bucket: str, key: bytes, tags: Mapping[str, str]) -> bool:
    """True where there is such an object."""
    where = objects.c.bucket == bucket, objects.c.key == key
    return connection.execute(objects.update().where(*where).values(tags=dict(tags))).rowcount == 1


def add_content(connection: sa.Connection, content: str, pieces: Sequence[Segment]) -> None:
    """A new content of these segments."""
    connection.execute(contents.insert().values(id=content, created=time.time()))
    rows = [
        {"content": content, "number": number, "blob": piece.blob, "start": piece.start, "size": piece.size,
         "checksum": piece.checksum}
        for number, piece in enumerate(pieces, 1)
    ]  # fmt: skip
    connection.execute(segments.insert(), rows)


def content_segments(connection: sa.Connection, content: str) -> list[Segment]:
    """In order; empty for a content that was removed."""
    columns = segments.c.blob, segments.c.start, segments.c.size, segments.c.checksum
    query = sa.select(*columns).where(segments.c.content == content).order_by(segments.c.number)
    return [Segment(*row) for row in connection.execute(query)]


def content_exists(connection: sa.Connection, content: str) -> bool:
    return connection.execute(sa.select(contents.c.id).where(contents.c.id == content)).first() is not None


def content_held(connection: sa.Connection, content: str) -> bool:
    """Whether an object holds it."""
    query = sa.select(objects.c.bucket).where(objects.c.content == content).limit(1)
    return connection.execute(query).first() is not None


def forget_content(connection: sa.Connection, content: str) -> bool:
    """Delete a content that no object holds any more; False where one does."""
    held = sa.exists().where(objects.c.content == content)
    if not connection.execute(contents.delete().where(contents.c.id == content, ~held)).rowcount:
        return False
    connection.execute(segments.delete().where(segments.c.content == content))
    return True


def idle_contents(connection: sa.Connection) -> list[str]:
    """Contents that no object holds."""
    held = sa.exists().where(objects.c.content == contents.c.id)
    return list(connection.execute(sa.select(contents.c.id).where(~held)).scalars())


def referenced_blobs(connection: sa.Connection, start: str) -> set[str]:
    """The names in rows that begin with `start`."""
    found: set[str] = set()
    for column in (segments.c.blob, parts.c.blob):
        found.update(connection.execute(sa.select(column).where(column >= start, column <= start + "g")).scalars())
    return found


def forget_old_uploads(connection: sa.Connection, before: float) -> int:
    """Delete the rows of uploads that were completed, and begun before `before`."""
    return connection.execute(uploads.delete().where(uploads.c.etag != "", uploads.c.created < before)).rowcount
