"""The object store's SQL statements; each function runs in its caller's transaction.

SQLite has one writer at a time. On PostgreSQL the rows that a write depends on are locked, and a key that another
writer inserted first raises IntegrityError, after which the caller retries.
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
from luthier.objects.checksums import Checksum, checksum_from_row
from luthier.objects.conditions import WriteCondition
from luthier.objects.tables import buckets, contents, objects, parts, segments, uploads

ATTEMPTS = 8  # of a transaction that conflicts with other writers
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
    """An object's metadata: members of PutObject that GetObject returns, user metadata, tags."""

    members: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredObject:
    """An object's row; `parts` is 0 unless it was a multipart upload, `modified` in seconds since 1970."""

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
    """A range of a content: `size` bytes in the file `blob`, which begin at `start` in the content."""

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

    def run_transaction(self, work: Callable[[sa.Connection], T]) -> T:
        """Run `work` in a transaction; retry it when it conflicts with other writers."""
        for attempt in range(ATTEMPTS):
            try:
                with self.write() as connection:
                    return work(connection)
            except IntegrityError:
                if attempt == ATTEMPTS - 1:
                    raise
        raise AssertionError("unreachable")

    def read(self) -> sa.Connection:
        """A connection to use as a context manager; each statement sees the latest commit."""
        return self.engine.connect()


def find_bucket(connection: sa.Connection, name: str) -> Bucket | None:
    row = connection.execute(sa.select(buckets).where(buckets.c.name == name)).one_or_none()
    return Bucket(*row) if row else None


def find_object(connection: sa.Connection, bucket: str, key: bytes, *, for_update: bool = False) -> StoredObject | None:
    query = sa.select(objects).where(objects.c.bucket == bucket, objects.c.key == key)
    row = connection.execute(query.with_for_update() if for_update else query).one_or_none()
    return object_of(row) if row else None


def object_of(row: sa.Row[Any]) -> StoredObject:
    return StoredObject(
        bucket=row.bucket, key=bytes(row.key).decode("utf-8"), content=row.content, size=row.size, etag=row.etag,
        modified=row.modified, parts=row.parts, attributes=Attributes(row.attributes, row.metadata, row.tags),
        checksum=checksum_from_row(row.checksum),
    )  # fmt: skip


def list_objects(
    connection: sa.Connection, bucket: str, start: bytes, end: bytes | None, limit: int
) -> list[StoredObject]:
    """Objects with keys from `start` on and, if given, before `end`, in S3's order."""
    query = sa.select(objects).where(objects.c.bucket == bucket, objects.c.key >= start)
    if end is not None:
        query = query.where(objects.c.key < end)
    return [object_of(row) for row in connection.execute(query.order_by(objects.c.key).limit(limit))]


def put_object(connection: sa.Connection, new: StoredObject, condition: WriteCondition) -> str | None:
    """Insert or replace an object if `condition` allows it; return the content it replaces."""
    key = new.key.encode("utf-8")
    present = find_object(connection, new.bucket, key, for_update=True)
    condition.check(present.etag if present else None)
    values = {
        "content": new.content, "size": new.size, "etag": new.etag, "modified": new.modified, "parts": new.parts,
        "attributes": dict(new.attributes.members), "metadata": dict(new.attributes.metadata),
        "tags": dict(new.attributes.tags), "checksum": new.checksum.to_row() if new.checksum else [],
    }  # fmt: skip
    if present:
        connection.execute(objects.update().where(objects.c.bucket == new.bucket, objects.c.key == key).values(values))
        return present.content
    connection.execute(objects.insert().values(bucket=new.bucket, key=key, **values))
    return None


def delete_object(connection: sa.Connection, bucket: str, key: bytes, condition: WriteCondition) -> str | None:
    """Delete an object if `condition` allows it; return its content."""
    present = find_object(connection, bucket, key, for_update=True)
    if present is None:
        return None
    condition.check(present.etag)
    connection.execute(objects.delete().where(objects.c.bucket == bucket, objects.c.key == key))
    return present.content


def set_tags(connection: sa.Connection, bucket: str, key: bytes, tags: Mapping[str, str]) -> bool:
    """Replace an object's tags; False if there is no such object."""
    where = objects.c.bucket == bucket, objects.c.key == key
    return connection.execute(objects.update().where(*where).values(tags=dict(tags))).rowcount == 1


def add_content(connection: sa.Connection, content: str, pieces: Sequence[Segment]) -> None:
    """Insert a content with its segments."""
    connection.execute(contents.insert().values(id=content, created=time.time()))
    rows = [
        {"content": content, "number": number, "blob": piece.blob, "start": piece.start, "size": piece.size,
         "checksum": piece.checksum}
        for number, piece in enumerate(pieces, 1)
    ]  # fmt: skip
    connection.execute(segments.insert(), rows)


def content_segments(connection: sa.Connection, content: str) -> list[Segment]:
    """A content's segments in order; empty for a removed content."""
    columns = segments.c.blob, segments.c.start, segments.c.size, segments.c.checksum
    query = sa.select(*columns).where(segments.c.content == content).order_by(segments.c.number)
    return [Segment(*row) for row in connection.execute(query)]


def content_exists(connection: sa.Connection, content: str) -> bool:
    return connection.execute(sa.select(contents.c.id).where(contents.c.id == content)).first() is not None


def is_content_referenced(connection: sa.Connection, content: str) -> bool:
    """Whether an object has this content."""
    query = sa.select(objects.c.bucket).where(objects.c.content == content).limit(1)
    return connection.execute(query).first() is not None


def delete_content(connection: sa.Connection, content: str) -> bool:
    """Delete a content unless an object has it; return whether it was deleted."""
    has_object = sa.exists().where(objects.c.content == content)
    if not connection.execute(contents.delete().where(contents.c.id == content, ~has_object)).rowcount:
        return False
    connection.execute(segments.delete().where(segments.c.content == content))
    return True


def unreferenced_contents(connection: sa.Connection) -> list[str]:
    """Contents that no object has."""
    has_object = sa.exists().where(objects.c.content == contents.c.id)
    return list(connection.execute(sa.select(contents.c.id).where(~has_object)).scalars())


def referenced_blobs(connection: sa.Connection, start: str) -> set[str]:
    """The names of blobs in rows that begin with `start`."""
    found: set[str] = set()
    for column in (segments.c.blob, parts.c.blob):
        found.update(connection.execute(sa.select(column).where(column >= start, column <= start + "g")).scalars())
    return found


def delete_old_uploads(connection: sa.Connection, before: float) -> int:
    """Delete the rows of completed uploads that began before `before`; return their number."""
    return connection.execute(uploads.delete().where(uploads.c.etag != "", uploads.c.created < before)).rowcount
