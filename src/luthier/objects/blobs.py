"""Immutable files of bytes: written atomically, removed when no reader is left.

    ROOT/incoming/<name>      being written
    ROOT/blobs/<xx>/<name>    whole, synced to disk; xx are the first two characters of the name

Names are generated and contain nothing of a request. File locks (flock) show what is in use, across processes and
without clean-up after a kill: a writer locks its file until its rows are committed, a reader shares the lock of a
content's first file, and a file is locked before it is removed. This module knows no rows.
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
from luthier.objects.errors import disk_errors, s3_error

CHUNK = 1 << 18  # bytes per read
RESERVED_BYTES = 64 << 20  # bytes of disk kept free for the database and its journal
SHARDS = [f"{number:02x}" for number in range(256)]
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


class BlobWriter:
    """A blob being written; `name` is its name."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs
        self.name, self._file = "", -1
        while self._file < 0:
            self.name = uuid.uuid4().hex
            self._path = blobs.root / "incoming" / self.name
            self._file = _create_locked(self._path)
        self.kept = False

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._file, view) :]

    def finalize(self) -> None:
        """Sync the file to disk under its final name; `close` removes it unless its rows were committed."""
        os.fsync(self._file)
        target = self._blobs.path(self.name)
        self._path = self._path.rename(target)
        _sync_folder(target.parent)

    @contextmanager
    def keep_on_commit(self) -> Iterator[None]:
        """Wrap the transaction of its rows: the file is kept if they were committed, or may have been."""
        try:
            yield
        except LuthierError:
            raise
        except DBAPIError as error:
            self.kept = error.connection_invalidated  # the commit may have succeeded: left to the sweep
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
    """All blobs below one folder, which is created if it is missing."""

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

    def check_free_space(self, size: int) -> None:
        """WireError InsufficientStorage if `size` more bytes do not fit."""
        status = os.statvfs(self.root)
        free = status.f_bavail * status.f_frsize
        if size + RESERVED_BYTES > free:
            raise s3_error(
                "InsufficientStorage",
                f"The disk of the object store has {free:,} bytes left, {RESERVED_BYTES:,} of them kept; "
                f"{size:,} do not fit",
            )

    @contextmanager
    def incoming(self) -> Iterator[BlobWriter]:
        """A new blob to write, removed afterwards unless it was kept. A full disk raises InsufficientStorage."""
        with disk_errors():
            blob = BlobWriter(self)
            try:
                yield blob
            finally:
                blob.close()

    def open(self, names: Sequence[str]) -> int:
        """Share the lock of a content's first file and return its descriptor; FileNotFoundError if it was removed."""
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
        """Yield True with the content of these files locked exclusively, False if somebody uses it."""
        try:
            file = os.open(self.path(names[0]), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            yield True  # killed after removing the first file, before its rows
            return
        try:
            yield _lock(file)
        finally:
            os.close(file)

    def remove(self, names: Sequence[str]) -> None:
        """Remove files, the first one last because its lock protects the others."""
        for name in reversed(names):
            self.path(name).unlink(missing_ok=True)

    def sweep(self, referenced: Callable[[str], Collection[str]]) -> int:
        """Remove files that killed writers left; return their number.

        `referenced` returns the names in rows that begin with a prefix. Files of active writers are locked and stay.
        """
        removed = sum(_remove_unlocked(path, lambda: False) for path in _files(self.root / "incoming"))
        for shard in SHARDS:
            names = {path.name for path in _files(self.root / "blobs" / shard)}
            known = referenced(shard) if names else ()
            for name in sorted(names.difference(known)):
                removed += _remove_unlocked(self.path(name), partial(_is_referenced, name, referenced))
        return removed


def _is_referenced(name: str, referenced: Callable[[str], Collection[str]]) -> bool:
    return name in referenced(name)


def _files(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:
        return [Path(entry.path) for entry in entries if entry.is_file(follow_symlinks=False)]


def _create_locked(path: Path) -> int:
    """Create a file and lock it; -1 if a sweep removed it in between."""
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
        # Checked again under the lock: the writer may have committed and unlocked since the rows were read.
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
