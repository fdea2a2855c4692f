"""Files of bytes that never change once they are in place: written whole or not at all, removed when nobody reads them.

    ROOT/incoming/<name>      being written
    ROOT/blobs/<xx>/<name>    whole, synced to disk; xx are the first two characters of the name

Names are made here and hold nothing of a request. Locks (flock) tell what is in use, across processes and without
anything to clean up after a kill: a writer holds its file's until its rows are committed, a reader shares the first
file's of the content it reads, and what removes a file takes its lock first. This module knows nothing of rows.
"""

from __future__ import annotations

import fcntl
import os
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from sqlalchemy.exc import DBAPIError

from luthier.errors import LuthierError
from luthier.objects.errors import disk, refusal

CHUNK = 1 << 18  # bytes read at once
RESERVE = 64 << 20  # bytes of disk left for the database and its journal
SHARDS = [f"{number:02x}" for number in range(256)]
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


class Incoming:
    """A blob that is being written. Its name is `name`."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs
        self.name, self._file = "", -1
        while self._file < 0:
            self.name = uuid.uuid4().hex
            self._path = blobs.root / "incoming" / self.name
            self._file = _locked_new(self._path)
        self.kept = False

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._file, view) :]

    def place(self) -> None:
        """Bring it to disk, under its name for good; it is removed again unless its rows are settled."""
        os.fsync(self._file)
        target = self._blobs.path(self.name)
        self._path = self._path.rename(target)
        _sync_folder(target.parent)

    @contextmanager
    def settled(self) -> Iterator[None]:
        """Around the transaction of its rows: it is kept once they are committed, or may have been."""
        try:
            yield
        except LuthierError:
            raise
        except DBAPIError as error:
            self.kept = error.connection_invalidated  # a connection lost in a commit does not tell: left to the sweep
            raise
        except BaseException:
            self.kept = True
            raise
        self.kept = True

    def close(self) -> None:
        if not self.kept:
            self._path.unlink(missing_ok=True)
        os.close(self._file)


class Blobs:
    """All blobs below one folder, which is made where it is missing."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        for folder in (root / "incoming", *(root / "blobs" / shard for shard in SHARDS)):
            folder.mkdir(parents=True, exist_ok=True)
        _sync_folder(root / "blobs")
        _sync_folder(root)
        _sync_folder(root.parent)

    def path(self, name: str) -> Path:
        return self.root / "blobs" / name[:2] / name

    def check_room(self, size: int) -> None:
        """WireError InsufficientStorage where `size` more bytes cannot fit."""
        found = os.statvfs(self.root)
        free = found.f_bavail * found.f_frsize
        if size + RESERVE > free:
            raise refusal(
                "InsufficientStorage",
                f"The disk of the object store has {free:,} bytes left, {RESERVE:,} of them kept; {size:,} do not fit",
            )

    @contextmanager
    def incoming(self) -> Iterator[Incoming]:
        """A new blob to write to; gone again unless it was kept. A full disk leaves as InsufficientStorage."""
        with disk():
            blob = Incoming(self)
            try:
                yield blob
            finally:
                blob.close()

    def open(self, names: Sequence[str]) -> int:
        """Share the lock of a content's first file and return its descriptor; FileNotFoundError when it is removed."""
        file = os.open(self.path(names[0]), os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(file, fcntl.LOCK_SH)
            if not os.fstat(file).st_nlink:
                raise FileNotFoundError(names[0])
        except BaseException:
            os.close(file)
            raise
        return file

    @contextmanager
    def removing(self, names: Sequence[str]) -> Iterator[bool]:
        """True while nobody can read or write the content of these files, False at once when somebody does."""
        try:
            file = os.open(self.path(names[0]), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            yield True  # a kill came between the first file and its rows
            return
        try:
            yield _lock(file)
        finally:
            os.close(file)

    def remove(self, names: Sequence[str]) -> None:
        """Remove files, the first last, so that its lock guards the others."""
        for name in reversed(names):
            self.path(name).unlink(missing_ok=True)

    def sweep(self, referenced: Callable[[str], Collection[str]]) -> int:
        """Remove what writers that were killed left; `referenced` is asked for the names in rows, by shard.

        Returns how many files were removed. A file of a writer at work is locked, and stays.
        """
        removed = sum(_remove_unlocked(path, lambda: False) for path in _files(self.root / "incoming"))
        for shard in SHARDS:
            names = {path.name for path in _files(self.root / "blobs" / shard)}
            known = referenced(shard) if names else ()
            for name in sorted(names.difference(known)):
                removed += _remove_unlocked(self.path(name), partial(_among, name, referenced))
        return removed


def _among(name: str, referenced: Callable[[str], Collection[str]]) -> bool:
    return name in referenced(name)


def _files(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:
        return [Path(entry.path) for entry in entries if entry.is_file(follow_symlinks=False)]


def _locked_new(path: Path) -> int:
    """A new file with its lock held; -1 where a sweep came between, and removed it."""
    file = os.open(path, _NEW, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file).st_nlink:
            return file
    except BaseException:
        os.close(file)
        raise
    os.close(file)
    return -1


def _remove_unlocked(path: Path, referenced: Callable[[], bool]) -> bool:
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        # Asked again under the lock: the writer may have committed, and let go, since the rows were read.
        if not _lock(file) or not path.exists() or referenced():
            return False
        path.unlink()
        return True
    finally:
        os.close(file)


def _lock(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _sync_folder(folder: Path) -> None:
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)
