"""The store itself, on SQLite and PostgreSQL: nothing acknowledged is lost, nothing half is seen or kept."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from objects import object_writer
from objects.live_objects import open_objects

from luthier.errors import CapacityError, UserError
from luthier.objects import blobs
from luthier.objects.conditions import UNCONDITIONAL, WriteCondition
from luthier.objects.queries import Attributes, StoredObject
from luthier.objects.reader import DamagedBlobError
from luthier.objects.store import EmbeddedObjectStore
from luthier.objects.tables import contents, parts, segments
from luthier.objects.uploads import CompletedPart, ExpectedObject, Uploads
from luthier.protocol.errors import WireError

Names = Callable[[], set[str]]
FIVE = 5 * 1024**2


def two_parts(
    objects: EmbeddedObjectStore, key: str, first: bytes = b"a" * FIVE, second: bytes = b"b" * 1000
) -> StoredObject:
    uploads = Uploads(objects)
    begun = uploads.begin("room", key, Attributes())
    listed = [CompletedPart(n, uploads.put_part(begun, n, [part]).etag) for n, part in ((1, first), (2, second))]
    uploads.complete("room", key, begun.id, listed, ExpectedObject())
    return objects.head("room", key)


def whole(objects: EmbeddedObjectStore, key: str) -> bytes:
    with objects.open("room", key) as stream:
        return b"".join(stream)


def delete(objects: EmbeddedObjectStore, key: str) -> None:
    objects.delete("room", [(key, UNCONDITIONAL)])


def test_objects_outlive_the_process(database_url: str, tmp_path: Path) -> None:
    with open_objects(database_url, tmp_path) as objects:
        objects.create_bucket("room", "123456789012", "eu-west-1")
        put = objects.put("room", "a/ü", [b"12", b"", b"3"], Attributes({"ContentType": "x/y"}, {"m": "1"}, {"t": "2"}))
        uploaded = two_parts(objects, "big")
    with open_objects(database_url, tmp_path) as objects:
        assert objects.sweep() == 0
        assert objects.head("room", "a/ü") == put
        assert objects.bucket("room").region == "eu-west-1"
        assert whole(objects, "a/ü") == b"123"
        assert objects.head("room", "big") == uploaded
        assert whole(objects, "big") == b"a" * FIVE + b"b" * 1000


def test_what_nothing_holds_is_removed(objects: EmbeddedObjectStore, blob_names: Names) -> None:
    objects.put("room", "a", [b"1"])
    first = blob_names()
    objects.put("room", "a", [b"2"])
    assert len(blob_names()) == 1
    assert not first & blob_names()
    with objects.open("room", "a") as source:
        objects.copy(source, StoredObject(bucket="room", key="b", content="", size=0, etag="", modified=0.0))
    delete(objects, "a")
    assert whole(objects, "b") == b"2"
    delete(objects, "b")
    two_parts(objects, "c")
    two_parts(objects, "c")
    assert len(blob_names()) == 2
    delete(objects, "c")
    assert blob_names() == set()
    with objects.database.read() as connection:
        assert not connection.execute(sa.select(contents)).all()
        assert not connection.execute(sa.select(segments)).all()


@pytest.mark.parametrize("parts", [1, 2])
def test_a_reader_keeps_what_it_reads(objects: EmbeddedObjectStore, blob_names: Names, parts: int) -> None:
    data = b"a" * FIVE + b"b" * 1000
    two_parts(objects, "a") if parts == 2 else objects.put("room", "a", [data])
    stream = objects.open("room", "a")
    assert next(stream)[:1] == b"a"
    objects.put("room", "a", [b"new"])
    assert objects.sweep() >= 1  # tried, and left
    with objects.open("room", "a") as other:
        delete(objects, "a")
        assert b"".join(other) == b"new"
    rest = b"".join(stream)
    assert len(rest) == len(data) - blobs.CHUNK
    assert rest.endswith(b"b" * 1000)
    assert blob_names() == set()  # the last reader collected it


def test_an_answer_that_is_never_sent_lets_go(objects: EmbeddedObjectStore, blob_names: Names) -> None:
    objects.put("room", "a", [b"x"])
    stream = objects.open("room", "a")
    delete(objects, "a")
    assert len(blob_names()) == 1
    del stream
    objects.sweep()
    assert blob_names() == set()


def test_a_refused_body_leaves_nothing(objects: EmbeddedObjectStore, blob_names: Names) -> None:
    objects.put("room", "a", [b"old"])
    before = blob_names()

    def broken() -> Iterator[bytes]:
        yield b"x" * 100_000
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        objects.put("room", "a", broken())
    for size in (2, 4):
        with pytest.raises(WireError) as caught:
            objects.put("room", "a", [b"new"], size=size)
        assert caught.value.code == "IncompleteBody"
    with pytest.raises(WireError):
        objects.put("room", "a", [b"new"], condition=WriteCondition(etag="other"))
    assert whole(objects, "a") == b"old"
    assert blob_names() == before


def test_a_guard_holds_until_the_commit(objects: EmbeddedObjectStore, blob_names: Names) -> None:
    """Whoever comes while the body is on its way is not overwritten."""

    def late() -> Iterator[bytes]:
        yield b"late"
        objects.put("room", "a", [b"early"])

    with pytest.raises(WireError) as caught:
        objects.put("room", "a", late(), condition=WriteCondition(absent=True))
    assert caught.value.code == "PreconditionFailed"
    assert whole(objects, "a") == b"early"
    assert len(blob_names()) == 1


def test_a_full_disk_is_said_and_nothing_is_half(
    objects: EmbeddedObjectStore, blob_names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects.put("room", "a", [b"old"])
    before, write = blob_names(), os.write
    written = 0

    def full(file: int, data: Any) -> int:
        nonlocal written
        written += len(data)
        if written > 200_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, data)

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(WireError) as caught:
        objects.put("room", "a", [b"x" * 65536] * 10)
    assert (caught.value.code, caught.value.status) == ("InsufficientStorage", 507)
    monkeypatch.undo()
    with pytest.raises(WireError) as caught:
        objects.put("room", "a", iter([]), size=1 << 60)
    assert caught.value.code == "InsufficientStorage"
    assert "bytes left" in caught.value.message
    assert whole(objects, "a") == b"old"
    assert blob_names() == before


def test_a_database_that_cannot_grow_is_a_full_disk(tmp_path: Path) -> None:
    with open_objects(f"sqlite:///{tmp_path / 'full.sqlite'}", tmp_path) as objects:
        objects.create_bucket("room", "123456789012", "us-east-1")
        objects.put("room", "a", [b"old"])
        engine = objects.database.engine
        engine.dispose()
        sa.event.listen(engine, "connect", lambda raw, record: raw.execute("PRAGMA max_page_count=1").close())
        with pytest.raises(WireError) as caught:
            _put_many(objects)
        assert caught.value.code == "InsufficientStorage"
        assert whole(objects, "a") == b"old"
        held = sum(path.is_file() for path in objects.blobs.root.rglob("*"))
        assert held == len(objects.page("room").objects)


def _put_many(objects: EmbeddedObjectStore) -> None:
    for number in range(200):
        objects.put("room", f"key-{number}-" + "k" * 900, [b"new"])


def test_a_large_body_takes_little_memory(objects: EmbeddedObjectStore) -> None:
    chunk = os.urandom(1 << 16)
    tracemalloc.start()
    try:
        objects.put("room", "large", (chunk for _ in range(1024)), size=1 << 26)
        with objects.open("room", "large") as stream:
            assert sum(map(len, stream)) == 1 << 26
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_sweeps_go_on_until_the_store_is_closed(objects: EmbeddedObjectStore, blob_names: Names) -> None:
    with objects.blobs.incoming() as blob:
        blob.kept = True  # as a killed writer leaves it
    assert blob_names() == {blob.name}
    objects.sweep_every(0.01)
    deadline = time.monotonic() + 20
    while blob_names():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    objects.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "object-sweeper"]


def test_a_damaged_file_is_told(objects: EmbeddedObjectStore) -> None:
    objects.put("room", "a", [b"0123456789"])
    [path] = [path for path in objects.blobs.root.rglob("*") if path.is_file()]
    path.write_bytes(b"0123")
    with objects.open("room", "a") as stream, pytest.raises(DamagedBlobError, match="ends before byte 4 of 10"):
        list(stream)


def test_writers_readers_copies_and_sweeps_at_once(objects: EmbeddedObjectStore, blob_names: Names) -> None:
    """Of eight threads on three keys, none sees anything but whole objects, and nothing is left over."""
    keys, bodies = ["a", "b", "c"], [bytes([65 + number]) * 300_000 for number in range(4)]
    for key in keys:
        objects.put("room", key, [bodies[0]])
    stop = time.monotonic() + 1.5

    def work(number: int) -> None:
        chosen = random.Random(number)
        while time.monotonic() < stop:
            verb, key = chosen.choice(["put", "read", "read", "copy", "upload", "sweep"]), chosen.choice(keys)
            if verb == "put":
                objects.put("room", key, [bodies[number % 4]])
            elif verb == "read":
                data = whole(objects, key)
                assert data in bodies or data == b"a" * FIVE + b"b" * 1000
            elif verb == "copy":
                with objects.open("room", key) as source:
                    objects.copy(
                        source,
                        StoredObject(bucket="room", key=chosen.choice(keys), content="", size=0, etag="", modified=0.0),
                    )
            elif verb == "upload" and number == 0:
                two_parts(objects, key)
            else:
                objects.sweep()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    objects.sweep()
    held = {segment.blob for key in keys for segment in objects.segments(objects.head("room", key))}
    assert blob_names() == held


def check(objects: EmbeddedObjectStore, notes: Path, of: str = "") -> int:
    """All that was acknowledged is there, all that is there is whole, and a sweep leaves nothing else on disk.

    Contents are compared for the writers whose names begin with `of`; the count is of their operations.
    """
    lines = [line.split() for line in notes.read_text().splitlines()]
    acknowledged = [(verb, what) for verb, what in lines if what.removeprefix(f"{verb}-").startswith(of)]
    newest = {}
    for verb, what in acknowledged:
        if verb == "hot":
            newest[what.rpartition("-")[0]] = what
        elif verb == "delete":
            assert not objects.exists(f"s3://room/{what}")
        else:
            assert objects.exists(f"s3://room/{what}")
        if verb == "copy":
            assert objects.exists(f"s3://room/{what}/again")
    found: list[StoredObject] = []
    start: bytes | None = b""
    while start is not None:
        page = objects.page("room", start=start)
        found, start = found + page.objects, page.following
    for one in found:
        name = one.attributes.metadata.get("of", one.key.removesuffix("/again"))
        if name.partition("-")[2].startswith(of) or one.key == "hot":
            assert whole(objects, one.key) == object_writer.content(name), one
    if newest:
        writer, _, number = objects.head("room", "hot").attributes.metadata["of"].removeprefix("hot-").rpartition("-")
        assert int(number) >= int(newest.get(writer, "-0").rpartition("-")[2])
    objects.sweep()
    on_disk = {path.name for path in objects.blobs.root.rglob("*") if path.is_file()}
    with objects.database.read() as connection:
        used = sa.select(segments.c.blob).where(segments.c.content.in_({one.content for one in found}))
        named = used.union(sa.select(parts.c.blob))
        assert on_disk == set(connection.execute(named).scalars())
    return len(acknowledged)


def storm(objects: EmbeddedObjectStore, url: str, notes: Path, kills: int) -> int:
    """Two writers, killed at random moments, again and again; how many operations were acknowledged."""
    chosen, acknowledged = random.Random(5), 0
    program = [sys.executable, object_writer.__file__]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as nursery:
        assert nursery.stdin
        assert nursery.stdout
        for number in range(kills):
            writers = []
            for one in "ab":
                nursery.stdin.write(json.dumps([url, str(objects.blobs.root), str(notes), f"{number}.{one}"]) + "\n")
                nursery.stdin.flush()
                writers.append(int(nursery.stdout.readline()))
            wait_for_note_of(f"{number}.", notes)
            time.sleep(chosen.uniform(0, 0.3))
            objects.sweep()
            for writer in writers:
                time.sleep(chosen.uniform(0, 0.05))
                kill(writer)
            acknowledged += check(objects, notes, f"{number}.")
        nursery.stdin.close()
    assert check(objects, notes) == acknowledged
    return acknowledged


def wait_for_note_of(writers: str, notes: Path) -> None:
    deadline = time.monotonic() + 30
    while not notes.exists() or (f"-{writers}" not in notes.read_text() and f" {writers}" not in notes.read_text()):
        assert time.monotonic() < deadline, "the writers do not write"
        time.sleep(0.01)


def kill(process: int) -> None:
    """And wait until it is gone."""
    deadline = time.monotonic() + 20
    with suppress(ProcessLookupError):
        while time.monotonic() < deadline:
            os.kill(process, signal.SIGKILL)
            time.sleep(0.005)
        pytest.fail(f"process {process} does not die")


def test_killed_writers_lose_nothing_and_leave_nothing(
    objects: EmbeddedObjectStore, database_url: str, tmp_path: Path
) -> None:
    assert storm(objects, database_url, tmp_path / "notes", 4) > 0


@pytest.mark.slow
def test_a_storm_of_kills(objects: EmbeddedObjectStore, database_url: str, tmp_path: Path) -> None:
    assert storm(objects, database_url, tmp_path / "notes", 60) > 100


# By address


def test_prefixes_are_downloaded_below_a_folder(objects: EmbeddedObjectStore, tmp_path: Path) -> None:
    for key in ("rows/a.csv", "rows/sub/b.csv", "rows/", "rows-old/c.csv", "one.txt"):
        objects.put("room", key, [key.encode()])
    assert objects.names("s3://room/rows") == ["a.csv", "sub/b.csv"]
    assert objects.names("s3://room/rows/") == ["a.csv", "sub/b.csv"]
    assert objects.names("s3://room/one.txt") == ["one.txt"]
    assert len(objects.names("s3://room")) == 4
    folder = objects.download_prefix("s3://room/rows", tmp_path / "target")
    assert {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()} == {
        "a.csv": b"rows/a.csv", "sub/b.csv": b"rows/sub/b.csv",
    }  # fmt: skip
    assert (objects.download_prefix("s3://room/one.txt", tmp_path / "one") / "one.txt").read_bytes() == b"one.txt"
    assert objects.names("s3://room/rows-") == ["rows-old/c.csv"]  # a prefix that ends inside a name
    assert objects.names("s3://room/ro") == ["rows-old/c.csv", "rows/a.csv", "rows/sub/b.csv"]
    assert objects.names("s3://room/rows/s") == ["sub/b.csv"]
    objects.check_bucket("s3://room/any")
    with pytest.raises(UserError, match="s3://nowhere/a: The specified bucket does not exist"):
        objects.check_bucket("s3://nowhere/a")
    with pytest.raises(UserError, match="s3://room/none: no objects found"):
        objects.download_prefix("s3://room/none", tmp_path / "none")
    with pytest.raises(UserError, match="s3://nowhere/a: The specified bucket does not exist"):
        objects.download_prefix("s3://nowhere/a", tmp_path / "none")


@pytest.mark.parametrize("key", ["p/../../out", "p//etc", "p/./x", "p/../x", "p//"])
def test_no_key_leaves_the_folder(objects: EmbeddedObjectStore, tmp_path: Path, key: str) -> None:
    objects.put("room", "p/fine", [b""])
    objects.put("room", key, [b"evil"])
    target = tmp_path / "target"
    if key.endswith("/"):  # a folder mark: nothing to write
        assert objects.names("s3://room/p") == ["fine"]
        return
    with pytest.raises(UserError, match="refusing the name"):
        objects.download_prefix("s3://room/p", target)
    assert not target.exists()


def test_names_that_no_disk_can_have(objects: EmbeddedObjectStore, tmp_path: Path) -> None:
    objects.put("room", "long/" + "n" * 300, [b""])
    with pytest.raises(UserError, match="no file can have this name here"):
        objects.download_prefix("s3://room/long", tmp_path / "long")
    for key in ("both/k", "both/k/c"):
        objects.put("room", key, [b""])
    with pytest.raises(UserError, match="no file can have this name here"):
        objects.download_prefix("s3://room/both", tmp_path / "both")


def test_files_are_stored_read_and_found(objects: EmbeddedObjectStore, tmp_path: Path) -> None:
    path = tmp_path / "model.tar.gz"
    path.write_bytes(b"z" * 1_000_000)
    objects.upload_file(path, "s3://room/out/model.tar.gz")
    path.write_bytes(b"changed later")
    assert objects.exists("s3://room/out/model.tar.gz")
    assert not objects.exists("s3://room/out/model.tar")
    assert not objects.exists("s3://nowhere/x")
    assert objects.read("s3://room/out/model.tar.gz", 1_000_000) == b"z" * 1_000_000
    with pytest.raises(UserError, match="1,000,000 bytes, expected at most 10"):
        objects.read("s3://room/out/model.tar.gz", 10)
    with pytest.raises(UserError, match="s3://room/no: The specified key does not exist"):
        objects.read("s3://room/no", 10)
    with pytest.raises(UserError, match="s3://nowhere/x: The specified bucket does not exist"):
        objects.upload_file(path, "s3://nowhere/x")
    for wrong in ("room/a", "s3://", "s3:///a", "file:///etc/passwd"):
        with pytest.raises(UserError, match="expected s3://bucket/key"):
            objects.exists(wrong)


def test_a_download_that_does_not_fit_is_refused_first(
    objects: EmbeddedObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects.put("room", "p/a", [b"x" * 1000])
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 999})())
    with pytest.raises(CapacityError, match="needs 1,000 bytes, the disk has 999"):
        objects.download_prefix("s3://room/p", tmp_path / "target")
    assert list((tmp_path / "target").iterdir()) == []
