"""The objects of the service: what its rooms may do with them, and the embedded store that does it.

An object is acknowledged once its bytes and its rows are on disk. Writers to one key do not wait for each other while
their bytes arrive: the last to commit wins, and who reads sees one object whole. What nothing holds any more is
collected at once, or, while somebody reads it, when the last reader leaves, or by the next `sweep`.
"""

from __future__ import annotations

import errno
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
from typing import BinaryIO, Protocol

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from luthier import storage
from luthier.errors import CapacityError, LuthierError, UserError
from luthier.objects import listing, queries
from luthier.objects.blobs import CHUNK, Blobs, Incoming
from luthier.objects.checksums import Demand, Digest
from luthier.objects.conditions import ANYHOW, Guard
from luthier.objects.errors import FULL_DISK, disk, refusal
from luthier.objects.names import check_bucket_name, key_bytes, parse_uri, text_bytes
from luthier.objects.queries import Attributes, Bucket, Database, Object, Segment
from luthier.objects.reader import Files, Stream
from luthier.objects.tables import buckets, objects, parts, uploads
from luthier.objects.virtual import VirtualBucket
from luthier.protocol.errors import WireError

logger = logging.getLogger(__name__)
UNNAMEABLE = {errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.EILSEQ, errno.EINVAL}
KEPT_SECONDS = 7 * 24 * 3600.0  # that a completed upload answers a repeated completion


class ObjectStore(Protocol):
    """What the service does with objects by s3:// address, wherever they are kept. UserError when one is not there."""

    def exists(self, uri: str) -> bool:
        """Whether there is an object of exactly this address."""
        ...

    def read(self, uri: str, limit: int) -> bytes:
        """The object's bytes; UserError when they are more than `limit`."""
        ...

    def names(self, uri: str) -> list[str]:
        """As storage.names: the one object of this key, else all below `uri/`; sorted, never empty."""
        ...

    def download_prefix(self, uri: str, folder: Path) -> Path:
        """Copy what `names` lists into `folder`, which no name can leave; return `folder`."""
        ...

    def upload_file(self, path: Path, uri: str) -> None:
        """Store a file as the object of this address."""
        ...

    def close(self) -> None: ...


class EmbeddedObjectStore:
    """The embedded store: files below `root`, rows behind `engine`. Make its tables by database.connect first."""

    def __init__(self, engine: sa.Engine, root: Path, virtual: Sequence[VirtualBucket] = ()) -> None:
        self.database = Database(engine)
        self.blobs = Blobs(root)
        self._virtual = tuple(virtual)
        self._busy: set[str] = set()
        self._closing = threading.Event()
        self._sweeper: threading.Thread | None = None

    def close(self) -> None:
        """Stop sweeping. The engine is its maker's to dispose of; readers that are still open stay so."""
        self._closing.set()
        if self._sweeper:
            self._sweeper.join()

    # Buckets

    def create_bucket(self, name: str, account: str, region: str) -> Bucket:
        """WireError: an invalid name, one of another account, or (except in us-east-1, as S3 does) one's own."""
        if self.virtual(name):
            raise refusal("BucketAlreadyExists")
        made = Bucket(check_bucket_name(name), account, region, time.time())
        try:
            with disk(), self.database.write() as connection:
                connection.execute(buckets.insert().values(
                    name=made.name, account=made.account, region=made.region, created=made.created,
                ))  # fmt: skip
        except IntegrityError:
            present = self.bucket(name)
            if present.account != account:
                raise refusal("BucketAlreadyExists") from None
            if present.region != "us-east-1" or region != "us-east-1":
                raise refusal("BucketAlreadyOwnedByYou") from None
            return present
        return made

    def bucket(self, name: str) -> Bucket:
        """WireError NoSuchBucket where there is none."""
        check_bucket_name(name)
        with self.database.read() as connection:
            found = queries.find_bucket(connection, name)
        if found is None:
            raise refusal("NoSuchBucket")
        return found

    def buckets(self, account: str) -> list[Bucket]:
        """Sorted by name."""
        query = sa.select(buckets).where(buckets.c.account == account).order_by(buckets.c.name)
        with self.database.read() as connection:
            return sorted((Bucket(*row) for row in connection.execute(query)), key=lambda bucket: bucket.name)

    def delete_bucket(self, name: str) -> None:
        """With its unfinished uploads; WireError BucketNotEmpty where it holds objects."""

        def work(connection: sa.Connection) -> list[str]:
            query = sa.select(buckets.c.name).where(buckets.c.name == name).with_for_update()
            if connection.execute(query).first() is None:
                raise refusal("NoSuchBucket")
            if connection.execute(sa.select(objects.c.bucket).where(objects.c.bucket == name).limit(1)).first():
                raise refusal("BucketNotEmpty")
            of_bucket = sa.select(uploads.c.id).where(uploads.c.bucket == name)
            gone = parts.delete().where(parts.c.upload.in_(of_bucket)).returning(parts.c.blob)
            names = list(connection.execute(gone).scalars())
            connection.execute(uploads.delete().where(uploads.c.bucket == name))
            connection.execute(buckets.delete().where(buckets.c.name == name))
            return names

        self.discard(self.database.settle(work))

    def virtual(self, name: str) -> VirtualBucket | None:
        """The read-only bucket of this name, if it is one."""
        return next((bucket for bucket in self._virtual if bucket.matches(name)), None)

    # Objects

    def head(self, bucket: str, key: str) -> Object:
        """WireError NoSuchKey or NoSuchBucket."""
        virtual = self.virtual(bucket)
        if virtual:
            return self._made(virtual, bucket, key)[0]
        check_bucket_name(bucket)
        with self.database.read() as connection:
            found = queries.find_object(connection, bucket, key_bytes(key))
        if found is None:
            self.bucket(bucket)
            raise refusal("NoSuchKey")
        return found

    def open(self, bucket: str, key: str) -> Stream:
        """An object to read and to close; it stays whole whatever happens to its key. WireErrors as `head`."""
        virtual = self.virtual(bucket)
        if virtual:
            made, data = self._made(virtual, bucket, key)
            return Stream(made, lambda offset, size: data[offset : offset + size])
        while True:
            found = self.head(bucket, key)
            files = self._files(found.content)
            if files:
                return Stream(found, files.read, files.close, partial(self._left, found.content))

    def segments(self, found: Object) -> list[Segment]:
        """The stretches that an object is made of, one for each part; empty for one that was replaced meanwhile."""
        with self.database.read() as connection:
            return queries.content_segments(connection, found.content)

    def put(
        self, bucket: str, key: str, chunks: Iterable[bytes], attributes: Attributes | None = None, *,
        demand: Demand | None = None, guard: Guard = ANYHOW, size: int | None = None,
    ) -> Object:  # fmt: skip
        """Store an object; on disk when this returns.

        WireError: no such bucket, a body that is not what `demand` or `size` say, a present object that `guard` does
        not allow to be replaced, a full disk. Nothing of it is there then.
        """
        self.writable(bucket)
        encoded = key_bytes(key)
        if guard != ANYHOW:  # before the body is taken, and again when it is stored
            guard.check(self._etag(bucket, encoded))
        demand = demand or Demand()
        with self.received(chunks, demand, size) as (blob, digest):
            new = Object(
                bucket=bucket, key=key, content=uuid.uuid4().hex, size=digest.size, etag=digest.etag,
                modified=time.time(), attributes=attributes or Attributes(),
                checksum=digest.checksum(demand.algorithm),
            )  # fmt: skip
            with blob.settled():
                replaced = self.commit(new, guard, [Segment(blob.name, 0, new.size)])
        self.collect(replaced)
        return new

    @contextmanager
    def received(
        self, chunks: Iterable[bytes], demand: Demand, size: int | None, algorithm: str = ""
    ) -> Iterator[tuple[Incoming, Digest]]:
        """A body on disk, as it was demanded, for the caller to commit; it is computed `algorithm` of as well."""
        if size:
            self.blobs.check_room(size)
        digest = Digest({demand.algorithm, algorithm})
        with self.blobs.incoming() as blob:
            for chunk in chunks:
                digest.update(chunk)
                blob.write(chunk)
            if size is not None and digest.size != size:
                raise refusal("IncompleteBody")
            digest.verify(demand)
            blob.place()
            yield blob, digest

    def commit(self, new: Object, guard: Guard, pieces: Sequence[Segment] = ()) -> str | None:
        """Make `new` what its key holds, with its content where `pieces` are given; return the content it replaces."""

        def work(connection: sa.Connection) -> str | None:
            if queries.find_bucket(connection, new.bucket) is None:
                raise refusal("NoSuchBucket")
            if pieces:
                queries.add_content(connection, new.content, pieces)
            return queries.put_object(connection, new, guard)

        with disk():
            return self.database.settle(work)

    def copy(self, source: Stream, target: Object, guard: Guard = ANYHOW) -> Object:
        """Let `target` hold what the open `source` holds; the bytes are shared, not read."""
        self.writable(target.bucket)
        key_bytes(target.key)
        if not source.object.content:
            demand = Demand(target.checksum.algorithm if target.checksum else "")
            return self.put(target.bucket, target.key, source, target.attributes, demand=demand, guard=guard)
        of = source.object
        new = replace(target, content=of.content, size=of.size, etag=of.etag, parts=of.parts, modified=time.time())
        self.collect(self.commit(new, guard))
        return new

    def delete(self, bucket: str, wanted: Sequence[tuple[str, Guard]]) -> list[WireError | None]:
        """Forget objects, in one transaction; for each the refusal of its guard, None where it is gone."""
        self.writable(bucket)
        self.bucket(bucket)
        keys = [(key_bytes(key), guard) for key, guard in wanted]
        outcomes: dict[int, WireError] = {}

        def work(connection: sa.Connection) -> list[str]:
            outcomes.clear()
            gone = []
            for index in sorted(range(len(keys)), key=lambda index: keys[index][0]):  # one order: no deadlock
                try:
                    content = queries.delete_object(connection, bucket, *keys[index])
                except WireError as refused:
                    outcomes[index] = refused
                else:
                    gone += [content] if content else []
            return gone

        for content in self.database.settle(work):
            self.collect(content)
        return [outcomes.get(index) for index in range(len(keys))]

    def set_tags(self, bucket: str, key: str, tags: Mapping[str, str]) -> None:
        """WireErrors as `head`."""
        self.writable(bucket)
        with disk(), self.database.write() as connection:
            found = queries.set_tags(connection, bucket, key_bytes(key), tags)
        if not found:
            self.head(bucket, key)

    def page(
        self, bucket: str, prefix: str = "", delimiter: str = "", start: bytes = b"", limit: int = listing.PAGE
    ) -> listing.Page:
        """A page of objects and folded prefixes, from position `start` on; WireError NoSuchBucket."""
        virtual = self.virtual(bucket)
        if virtual:
            return listing.page(partial(virtual.list, bucket), text_bytes(prefix), text_bytes(delimiter), start, limit)
        self.bucket(bucket)
        with self.database.read() as connection:
            fetch = partial(queries.list_objects, connection, bucket)
            return listing.page(fetch, text_bytes(prefix), text_bytes(delimiter), start, limit)

    def writable(self, bucket: str) -> None:
        """WireError AccessDenied for a virtual bucket, NoSuchBucket where there is none."""
        if self.virtual(bucket):
            raise refusal("AccessDenied", f"Access Denied: bucket {bucket} is read-only")
        self.bucket(bucket)

    # Collection

    def collect(self, content: str | None) -> None:
        """Remove a content that nothing holds, unless somebody reads it: then the last reader comes back here.

        What fails here fails nobody's request: it is logged, and `sweep` tries again.
        """
        if content is None:
            return
        try:
            self._collect(content)
        except (OSError, SQLAlchemyError) as error:
            logger.warning("content %s is left to the next sweep: %s", content, error)

    def discard(self, names: Sequence[str]) -> None:
        """Remove files that no row names any more and that nobody reads; a failure is as in `collect`."""
        try:
            self.blobs.remove(names)
        except OSError as error:
            logger.warning("files %s are left to the next sweep: %s", ", ".join(names), error)

    def _collect(self, content: str) -> None:
        self._busy.add(content)  # before the attempt, so that a reader who leaves during it comes back
        with self.database.read() as connection:
            held = queries.content_held(connection, content)
            names = [segment.blob for segment in queries.content_segments(connection, content)]
        if names and not held:
            with self.blobs.removing(names) as free:
                if not free:
                    return
                try:
                    with self.database.write() as connection:
                        gone = queries.forget_content(connection, content)
                except IntegrityError:
                    gone = False  # a copy of it was committed meanwhile
                if gone:
                    self.blobs.remove(names)
        self._busy.discard(content)

    def _left(self, content: str) -> None:
        if content in self._busy:
            self.collect(content)

    def sweep(self) -> int:
        """Collect what kills, failures and other processes' readers left, at any time; how much that was."""

        def referenced(start: str) -> set[str]:
            with self.database.read() as connection:
                return queries.referenced_blobs(connection, start)

        with self.database.read() as connection:
            idle = queries.idle_contents(connection)
        for content in idle:
            self.collect(content)
        with self.database.write() as connection:
            queries.forget_old_uploads(connection, time.time() - KEPT_SECONDS)
        return len(idle) + self.blobs.sweep(referenced)

    def sweep_every(self, seconds: float) -> None:
        """Sweep now and then in a thread of its own, until `close`; once for all processes that share the store."""

        def work() -> None:
            while True:
                try:
                    found = self.sweep()
                except (OSError, SQLAlchemyError) as error:
                    logger.warning("the object store could not be swept: %s", error)
                else:
                    logger.info("swept the object store: %d left-overs", found)
                if self._closing.wait(seconds):
                    return

        self._sweeper = threading.Thread(target=work, name="object-sweeper", daemon=True)
        self._sweeper.start()

    def _files(self, content: str) -> Files | None:
        """The open files of a content; None where it was removed since it was found."""
        with self.database.read() as connection:
            found = queries.content_segments(connection, content)
        if not found:
            return None
        try:
            first = self.blobs.open([segment.blob for segment in found])
        except FileNotFoundError:
            return None
        files = Files(self.blobs, found, first)
        with self.database.read() as connection:
            if len(found) == 1 or queries.content_exists(connection, content):
                return files
        files.close()
        return None

    def _etag(self, bucket: str, key: bytes) -> str | None:
        with self.database.read() as connection:
            found = queries.find_object(connection, bucket, key)
        return found.etag if found else None

    @staticmethod
    def _made(virtual: VirtualBucket, bucket: str, key: str) -> tuple[Object, bytes]:
        found = virtual.find(bucket, key)
        if found is None:
            raise refusal("NoSuchKey")
        return found

    # By address

    def exists(self, uri: str) -> bool:
        bucket, key = parse_uri(uri)
        try:
            self.head(bucket, key)
        except WireError as error:
            if error.status == 404:
                return False
            raise _of(uri, error) from error
        return True

    def read(self, uri: str, limit: int) -> bytes:
        bucket, key = parse_uri(uri)
        with _told(uri), self.open(bucket, key) as stream:
            if stream.object.size > limit:
                raise UserError(f"{uri}: {stream.object.size:,} bytes, expected at most {limit:,}")
            return b"".join(stream)

    def names(self, uri: str) -> list[str]:
        return sorted(name for _, name, _ in self._below(uri))

    def download_prefix(self, uri: str, folder: Path) -> Path:
        bucket, _ = parse_uri(uri)
        found = [(key, storage.inside(folder, name, uri), size) for key, name, size in self._below(uri)]
        folder.mkdir(parents=True, exist_ok=True)
        needed, free = sum(size for _, _, size in found), shutil.disk_usage(folder).free
        if needed > free:
            raise CapacityError(f"{folder}: {uri} needs {needed:,} bytes, the disk has {free:,}; free some")
        for key, target, _ in found:
            with _told(uri), self.open(bucket, key) as stream, _made_file(target, f"s3://{bucket}/{key}") as file:
                file.writelines(stream)
        return folder

    def upload_file(self, path: Path, uri: str) -> None:
        bucket, key = parse_uri(uri)
        with _told(uri), path.open("rb") as file:
            self.put(bucket, key, iter(lambda: file.read(CHUNK), b""), size=path.stat().st_size)

    def _below(self, uri: str) -> list[tuple[str, str, int]]:
        """(key, name, size) of what an address stands for; folder marks (keys that end in /) left out."""
        bucket, prefix = parse_uri(uri)
        below = prefix if prefix == "" or prefix.endswith("/") else prefix + "/"
        with _told(uri):
            if not prefix.endswith("/") and prefix and self.exists(uri):
                one = self.head(bucket, prefix)
                return [(prefix, PurePosixPath(prefix).name, one.size)]
            found: list[tuple[str, str, int]] = []
            start: bytes | None = b""
            while start is not None:
                page = self.page(bucket, below, start=start)
                files = (one for one in page.objects if not one.key.endswith("/"))
                found += [(one.key, one.key[len(below) :], one.size) for one in files]
                start = page.following
        if not found:
            raise UserError(f"{uri}: no objects are there")
        return found


@contextmanager
def _told(uri: str) -> Iterator[None]:
    """Refusals of S3 leave with the address they are about."""
    try:
        yield
    except WireError as error:
        raise _of(uri, error) from error


def _of(uri: str, error: WireError) -> LuthierError:
    kind = CapacityError if error.code == "InsufficientStorage" else UserError
    return kind(f"{uri}: {error.message}")


@contextmanager
def _made_file(target: Path, uri: str) -> Iterator[BinaryIO]:
    """A new file of an object's name; UserError where the disk cannot have one of that name."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        file = target.open("wb")
    except OSError as error:
        if error.errno in UNNAMEABLE:
            raise UserError(f"{uri}: no file can have this name here ({error.strerror}); rename the object") from error
        raise
    try:
        with file:
            yield file
    except OSError as error:
        if error.errno in FULL_DISK:
            raise CapacityError(f"{target}: the disk is full; free some of it, {uri} is not whole") from error
        raise
