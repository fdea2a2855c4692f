"""The object store's interface for the service, and the embedded store.

A write returns when its bytes and rows are on disk. Concurrent writers of a key do not block each other while their
bytes arrive: the last commit wins, and a reader sees one complete object. Contents that no object has are removed at
once, or, if they are being read, when the last reader closes or by the next `sweep`.
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Protocol

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from luthier import storage
from luthier.errors import CapacityError, LuthierError, NoObjectsError, UserError
from luthier.objects import listing, queries
from luthier.objects.blobs import CHUNK, Blobs, BlobWriter
from luthier.objects.checksums import BodyChecksums, Digest
from luthier.objects.conditions import UNCONDITIONAL, WriteCondition
from luthier.objects.errors import disk_errors, s3_error
from luthier.objects.local_file import create_file
from luthier.objects.names import check_bucket_name, key_bytes, parse_uri, text_bytes
from luthier.objects.queries import Attributes, Bucket, Database, Segment, StoredObject
from luthier.objects.reader import DamagedBlobError, ObjectReader, SegmentReader
from luthier.objects.tables import buckets, objects, parts, uploads
from luthier.objects.virtual import VirtualBucket
from luthier.protocol.call import GLOBAL_REGION
from luthier.protocol.errors import WireError

logger = logging.getLogger(__name__)
CLOSE_SECONDS = 5.0
COMPLETED_UPLOAD_SECONDS = 7 * 24 * 3600.0  # how long a repeated completion gets the first one's response


class ObjectStore(Protocol):
    """What the service does with objects by their s3:// URIs, wherever they are stored. UserError for a missing one."""

    def exists(self, uri: str) -> bool:
        """Whether there is an object with exactly this URI."""
        ...

    def read(self, uri: str, limit: int) -> bytes:
        """The object's bytes; UserError if there are more than `limit`."""
        ...

    def names(self, uri: str) -> list[str]:
        """As storage.names: the object with this key, else all below `uri/`; sorted, never empty."""
        ...

    def download_prefix(self, uri: str, folder: Path) -> Path:
        """Download what `names` lists into `folder`, never outside of it; return `folder`."""
        ...

    def upload_file(self, path: Path, uri: str) -> None:
        """Store a file as the object with this URI."""
        ...

    def check_bucket(self, uri: str) -> None:
        """UserError if the bucket of this URI is missing, or cannot be written."""
        ...

    def close(self) -> None: ...


class EmbeddedObjectStore:
    """The embedded store: files below `root`, rows in the database of `engine`, which has the tables already."""

    def __init__(self, engine: sa.Engine, root: Path, virtual: Sequence[VirtualBucket] = ()) -> None:
        self.database = Database(engine)
        self.blobs = Blobs(root)
        self._virtual_buckets = tuple(virtual)
        self._uncollected: set[str] = set()
        self._closing = threading.Event()
        self._sweeper: threading.Thread | None = None

    def close(self) -> None:
        """Stop sweeping. The caller disposes of the engine; open readers stay open."""
        self._closing.set()
        if self._sweeper:
            self._sweeper.join(CLOSE_SECONDS)  # a daemon: it ends with the process

    # Buckets

    def create_bucket(self, name: str, account: str, region: str) -> Bucket:
        """Create a bucket. WireError: invalid name; existing bucket, except (as in S3) one's own in GLOBAL_REGION."""
        if self.virtual_bucket(name):
            raise s3_error("BucketAlreadyExists")
        bucket = Bucket(check_bucket_name(name), account, region, time.time())
        try:
            with disk_errors(), self.database.write() as connection:
                connection.execute(buckets.insert().values(
                    name=bucket.name, account=bucket.account, region=bucket.region, created=bucket.created,
                ))  # fmt: skip
        except IntegrityError:
            present = self.bucket(name)
            if present.account != account:
                raise s3_error("BucketAlreadyExists") from None
            if present.region != GLOBAL_REGION or region != GLOBAL_REGION:
                raise s3_error("BucketAlreadyOwnedByYou") from None
            return present
        return bucket

    def bucket(self, name: str) -> Bucket:
        """The bucket of this name; WireError NoSuchBucket."""
        check_bucket_name(name)
        with self.database.read() as connection:
            stored = queries.find_bucket(connection, name)
        if stored is None:
            raise s3_error("NoSuchBucket")
        return stored

    def buckets(self, account: str) -> list[Bucket]:
        """An account's buckets, sorted by name."""
        query = sa.select(buckets).where(buckets.c.account == account).order_by(buckets.c.name)
        with self.database.read() as connection:
            return sorted((Bucket(*row) for row in connection.execute(query)), key=lambda bucket: bucket.name)

    def delete_bucket(self, name: str) -> None:
        """Delete a bucket and its unfinished uploads; WireError BucketNotEmpty if it has objects."""

        def work(connection: sa.Connection) -> list[str]:
            query = sa.select(buckets.c.name).where(buckets.c.name == name).with_for_update()
            if connection.execute(query).first() is None:
                raise s3_error("NoSuchBucket")
            if connection.execute(sa.select(objects.c.bucket).where(objects.c.bucket == name).limit(1)).first():
                raise s3_error("BucketNotEmpty")
            of_bucket = sa.select(uploads.c.id).where(uploads.c.bucket == name)
            deleted = parts.delete().where(parts.c.upload.in_(of_bucket)).returning(parts.c.blob)
            names = list(connection.execute(deleted).scalars())
            connection.execute(uploads.delete().where(uploads.c.bucket == name))
            connection.execute(buckets.delete().where(buckets.c.name == name))
            return names

        self.discard(self.database.run_transaction(work))

    def virtual_bucket(self, name: str) -> VirtualBucket | None:
        """The virtual bucket of this name, if there is one."""
        return next((bucket for bucket in self._virtual_buckets if bucket.matches(name)), None)

    # Objects

    def head(self, bucket: str, key: str) -> StoredObject:
        """An object's row; WireError NoSuchKey or NoSuchBucket."""
        if virtual := self.virtual_bucket(bucket):
            return self._virtual_object(virtual, bucket, key)[0]
        check_bucket_name(bucket)
        with self.database.read() as connection:
            stored = queries.find_object(connection, bucket, key_bytes(key))
        if stored is None:
            self.bucket(bucket)
            raise s3_error("NoSuchKey")
        return stored

    def open(self, bucket: str, key: str) -> ObjectReader:
        """Open an object to read; it stays complete whatever happens to its key. WireErrors as `head`."""
        if virtual := self.virtual_bucket(bucket):
            stored, data = self._virtual_object(virtual, bucket, key)
            return ObjectReader(stored, lambda offset, size: data[offset : offset + size])
        missing, stored = "", self.head(bucket, key)
        while (files := self._files(stored.content)) is None:
            if stored.content == missing:  # it was not replaced since the first look
                raise DamagedBlobError(f"s3://{bucket}/{key}: its file is missing; run: luthier objects check")
            missing, stored = stored.content, self.head(bucket, key)
        return ObjectReader(stored, files.read, files.close, partial(self._reader_closed, stored.content))

    def segments(self, stored: StoredObject) -> list[Segment]:
        """An object's segments, one per part; empty if it was replaced meanwhile."""
        with self.database.read() as connection:
            return queries.content_segments(connection, stored.content)

    def put(
        self, bucket: str, key: str, chunks: Iterable[bytes], attributes: Attributes | None = None, *,
        expected: BodyChecksums | None = None, condition: WriteCondition = UNCONDITIONAL, size: int | None = None,
    ) -> StoredObject:  # fmt: skip
        """Store an object; it is on disk when this returns.

        WireError for a missing bucket, a body that differs from `expected` or `size`, an object that `condition` does
        not allow to replace, or a full disk; nothing is stored then.
        """
        self.check_writable(bucket)
        encoded = key_bytes(key)
        if condition != UNCONDITIONAL:  # before the body is received, and again in the transaction
            condition.check(self._etag(bucket, encoded))
        expected = expected or BodyChecksums()
        with self.receive_body(chunks, expected, size) as (blob, digest):
            new = StoredObject(
                bucket=bucket, key=key, content=uuid.uuid4().hex, size=digest.size, etag=digest.etag,
                modified=time.time(), attributes=attributes or Attributes(),
                checksum=digest.checksum(expected.algorithm),
            )  # fmt: skip
            with blob.keep_on_commit():
                replaced = self.commit(new, condition, [Segment(blob.name, 0, new.size)])
        self.collect(replaced)
        return new

    @contextmanager
    def receive_body(
        self, chunks: Iterable[bytes], expected: BodyChecksums, size: int | None, algorithm: str = ""
    ) -> Iterator[tuple[BlobWriter, Digest]]:
        """Write a body to disk and verify it, for the caller to commit; compute `algorithm`, too."""
        if size:
            self.blobs.check_free_space(size)
        digest = Digest({expected.algorithm, algorithm})
        with self.blobs.incoming() as blob:
            for chunk in chunks:
                digest.update(chunk)
                blob.write(chunk)
            if size is not None and digest.size != size:
                raise s3_error("IncompleteBody")
            digest.verify(expected)
            blob.finalize()
            yield blob, digest

    def commit(self, new: StoredObject, condition: WriteCondition, pieces: Sequence[Segment] = ()) -> str | None:
        """Insert or replace an object, with its content if `pieces` are given; return the content it replaces."""

        def work(connection: sa.Connection) -> str | None:
            if queries.find_bucket(connection, new.bucket) is None:
                raise s3_error("NoSuchBucket")
            if pieces:
                queries.add_content(connection, new.content, pieces)
            return queries.put_object(connection, new, condition)

        with disk_errors():
            return self.database.run_transaction(work)

    def copy(
        self, source: ObjectReader, target: StoredObject, condition: WriteCondition = UNCONDITIONAL
    ) -> StoredObject:
        """Make `target` a copy of the open `source`, which shares its content."""
        self.check_writable(target.bucket)
        key_bytes(target.key)
        if not source.object.content:
            sums = BodyChecksums(target.checksum.algorithm if target.checksum else "")
            return self.put(target.bucket, target.key, source, target.attributes, expected=sums, condition=condition)
        original = source.object
        new = replace(
            target, content=original.content, size=original.size, etag=original.etag, parts=original.parts,
            modified=time.time(),
        )  # fmt: skip
        self.collect(self.commit(new, condition))
        return new

    def delete(self, bucket: str, deletions: Sequence[tuple[str, WriteCondition]]) -> list[WireError | None]:
        """Delete objects in one transaction; for each the error of its condition, None if it was deleted."""
        self.check_writable(bucket)
        self.bucket(bucket)
        keys = [(key_bytes(key), condition) for key, condition in deletions]
        order = sorted(range(len(keys)), key=lambda index: keys[index][0])  # the same everywhere prevents deadlocks
        outcomes: dict[int, WireError] = {}

        def work(connection: sa.Connection) -> list[str]:
            outcomes.clear()
            deleted = []
            for index in order:
                try:
                    content = queries.delete_object(connection, bucket, *keys[index])
                except WireError as error:
                    outcomes[index] = error
                else:
                    deleted += [content] if content else []
            return deleted

        for content in self.database.run_transaction(work):
            self.collect(content)
        return [outcomes.get(index) for index in range(len(keys))]

    def set_tags(self, bucket: str, key: str, tags: Mapping[str, str]) -> None:
        """WireErrors as `head`."""
        self.check_writable(bucket)
        with disk_errors(), self.database.write() as connection:
            stored = queries.set_tags(connection, bucket, key_bytes(key), tags)
        if not stored:
            self.head(bucket, key)

    def page(
        self, bucket: str, prefix: str = "", delimiter: str = "", start: bytes = b"", limit: int = listing.PAGE
    ) -> listing.KeyPage:
        """A page of objects and common prefixes from position `start` on; WireError NoSuchBucket."""
        if virtual := self.virtual_bucket(bucket):
            return listing.page(partial(virtual.list, bucket), text_bytes(prefix), text_bytes(delimiter), start, limit)
        self.bucket(bucket)
        with self.database.read() as connection:
            fetch = partial(queries.list_objects, connection, bucket)
            return listing.page(fetch, text_bytes(prefix), text_bytes(delimiter), start, limit)

    def check_writable(self, bucket: str) -> None:
        """WireError AccessDenied for a virtual bucket, NoSuchBucket for a missing one."""
        if self.virtual_bucket(bucket):
            raise s3_error("AccessDenied", f"Access Denied: bucket {bucket} is read-only")
        self.bucket(bucket)

    # Collection

    def collect(self, content: str | None) -> None:
        """Remove a content that no object has, unless it is being read: then the last reader calls this again.

        Failures are logged and left to the next `sweep`; they fail no request.
        """
        if content is None:
            return
        try:
            self._collect(content)
        except (OSError, SQLAlchemyError) as error:
            logger.warning("content %s is left to the next sweep: %s", content, error)

    def discard(self, names: Sequence[str]) -> None:
        """Remove files that no row refers to and nobody reads; failures as in `collect`."""
        try:
            self.blobs.remove(names)
        except OSError as error:
            logger.warning("files %s are left to the next sweep: %s", ", ".join(names), error)

    def _collect(self, content: str) -> None:
        self._uncollected.add(content)  # first, so that a reader that closes meanwhile tries again
        with self.database.read() as connection:
            held = queries.is_content_referenced(connection, content)
            names = [segment.blob for segment in queries.content_segments(connection, content)]
        if names and not held:
            with self.blobs.removing(names) as is_free:
                if not is_free:
                    return
                try:
                    with self.database.write() as connection:
                        deleted = queries.delete_content(connection, content)
                except IntegrityError:
                    deleted = False  # a copy was committed meanwhile
                if deleted:
                    self.blobs.remove(names)
        self._uncollected.discard(content)

    def _reader_closed(self, content: str) -> None:
        if content in self._uncollected:
            self.collect(content)

    def sweep(self) -> int:
        """Remove what kills, failures and readers of other processes left; return how much."""

        def referenced(start: str) -> set[str]:
            with self.database.read() as connection:
                return queries.referenced_blobs(connection, start)

        with self.database.read() as connection:
            idle = queries.unreferenced_contents(connection)
        for content in idle:
            self.collect(content)
        with self.database.write() as connection:
            queries.delete_old_uploads(connection, time.time() - COMPLETED_UPLOAD_SECONDS)
        return len(idle) + self.blobs.sweep(referenced)

    def sweep_every(self, seconds: float) -> None:
        """Sweep every `seconds` in a thread until `close`; one process of those that share the store should do so."""

        def work() -> None:
            while True:
                try:
                    stored = self.sweep()
                except (OSError, SQLAlchemyError) as error:
                    logger.warning("the object store could not be swept: %s", error)
                else:
                    logger.info("swept the object store: %d left-overs", stored)
                if self._closing.wait(seconds):
                    return

        self._sweeper = threading.Thread(target=work, name="object-sweeper", daemon=True)
        self._sweeper.start()

    def _files(self, content: str) -> SegmentReader | None:
        """Open the files of a content; None if it was removed meanwhile."""
        with self.database.read() as connection:
            stored = queries.content_segments(connection, content)
        if not stored:
            return None
        try:
            first = self.blobs.open([segment.blob for segment in stored])
        except FileNotFoundError:
            return None
        files = SegmentReader(self.blobs, stored, first)
        with self.database.read() as connection:
            if len(stored) == 1 or queries.content_exists(connection, content):
                return files
        files.close()
        return None

    def _etag(self, bucket: str, key: bytes) -> str | None:
        with self.database.read() as connection:
            stored = queries.find_object(connection, bucket, key)
        return stored.etag if stored else None

    @staticmethod
    def _virtual_object(virtual: VirtualBucket, bucket: str, key: str) -> tuple[StoredObject, bytes]:
        stored = virtual.find(bucket, key)
        if stored is None:
            raise s3_error("NoSuchKey")
        return stored

    # By URI

    def exists(self, uri: str) -> bool:
        bucket, key = parse_uri(uri)
        try:
            self.head(bucket, key)
        except WireError as error:
            if error.status == 404:
                return False
            raise _with_uri(uri, error) from error
        return True

    def read(self, uri: str, limit: int) -> bytes:
        bucket, key = parse_uri(uri)
        with _errors_with_uri(uri), self.open(bucket, key) as stream:
            if stream.object.size > limit:
                raise UserError(f"{uri}: {stream.object.size:,} bytes, expected at most {limit:,}")
            return b"".join(stream)

    def names(self, uri: str) -> list[str]:
        return sorted(name for _, name, _ in self._list_prefix(uri))

    def download_prefix(self, uri: str, folder: Path) -> Path:
        bucket, _ = parse_uri(uri)
        stored = [(key, storage.inside(folder, name, uri), size) for key, name, size in self._list_prefix(uri)]
        folder.mkdir(parents=True, exist_ok=True)
        needed, free = sum(size for _, _, size in stored), shutil.disk_usage(folder).free
        if needed > free:
            raise CapacityError(f"{folder}: {uri} needs {needed:,} bytes, the disk has {free:,}; free some")
        for key, target, _ in stored:
            with (
                _errors_with_uri(uri),
                self.open(bucket, key) as stream,
                create_file(target, f"s3://{bucket}/{key}") as file,
            ):
                file.writelines(stream)
        return folder

    def upload_file(self, path: Path, uri: str) -> None:
        bucket, key = parse_uri(uri)
        with _errors_with_uri(uri), path.open("rb") as file:
            self.put(bucket, key, iter(lambda: file.read(CHUNK), b""), size=path.stat().st_size)

    def check_bucket(self, uri: str) -> None:
        with _errors_with_uri(uri):
            self.check_writable(parse_uri(uri)[0])

    def _list_prefix(self, uri: str) -> list[tuple[str, str, int]]:
        """(key, name, size) of the objects a URI stands for, without folder markers (keys that end in /).

        These are the object itself, else those below `uri/`, else those whose key begins with it.
        """
        bucket, prefix = parse_uri(uri)
        below = prefix if prefix == "" or prefix.endswith("/") else prefix + "/"
        with _errors_with_uri(uri):
            if not prefix.endswith("/") and prefix and self.exists(uri):
                item = self.head(bucket, prefix)
                return [(prefix, PurePosixPath(prefix).name, item.size)]
            entries = self._list_keys(bucket, below) or self._list_keys(bucket, prefix)
        if not entries:
            raise NoObjectsError(f"{uri}: no objects found")
        return entries

    def _list_keys(self, bucket: str, prefix: str) -> list[tuple[str, str, int]]:
        """(key, name below the last / of the prefix, size) of the objects whose key begins with `prefix`."""
        entries: list[tuple[str, str, int]] = []
        start: bytes | None = b""
        while start is not None:
            page = self.page(bucket, prefix, start=start)
            files = (item for item in page.objects if not item.key.endswith("/"))
            entries += [(item.key, item.key[prefix.rfind("/") + 1 :], item.size) for item in files]
            start = page.following
        return entries


@contextmanager
def _errors_with_uri(uri: str) -> Iterator[None]:
    """Raise S3 errors with the URI they are about."""
    try:
        yield
    except WireError as error:
        raise _with_uri(uri, error) from error


def _with_uri(uri: str, error: WireError) -> LuthierError:
    kind = CapacityError if error.code == "InsufficientStorage" else UserError
    return kind(f"{uri}: {error.message}")
