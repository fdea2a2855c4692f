"""A model's artifact brought to a folder: downloaded, and unpacked without trust in what it holds.

It may come from anybody who may write to a bucket: no name leaves the folder, nothing but files and folders is made,
and no more than the disk can hold.
"""

from __future__ import annotations

import gzip
import shutil
import tarfile
import zlib
from collections.abc import Iterator
from io import BufferedIOBase
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

from luthier.errors import CapacityError, UserError

if TYPE_CHECKING:
    from luthier.supervisor.layout import ArtifactStore

MOST_MEMBERS = 100_000
MOST_AT_ONCE = 4 << 20  # bytes that are read in one piece
RESERVE = 256 << 20  # bytes of disk that are left free
_SUFFIXES = (".tar.gz", ".tgz", ".tar")


def fetch(objects: ArtifactStore, uri: str, folder: Path) -> None:
    """Bring the model at `uri`, an archive or a prefix of files, to `folder`, whole or not at all.

    UserError for what is not there, is no sound archive, or is none of a model's files; CapacityError for too much.
    """
    shutil.rmtree(folder, ignore_errors=True)
    arrived = folder.with_name(f".{folder.name}.arriving")
    shutil.rmtree(arrived, ignore_errors=True)
    try:
        (arrived / "download").mkdir(parents=True)
        objects.download_prefix(uri, arrived / "download")
        files = [path for path in (arrived / "download").rglob("*") if path.is_file()]
        if len(files) == 1 and files[0].name.endswith(_SUFFIXES):
            unpack(files[0], arrived / "model")
            (arrived / "model").rename(folder)
        else:
            (arrived / "download").rename(folder)
    finally:
        shutil.rmtree(arrived, ignore_errors=True)


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a tar, gzipped or not. UserError for a broken one and for members that are no plain files inside it."""
    folder.mkdir(parents=True)
    room = shutil.disk_usage(folder).free - RESERVE
    try:
        with _opened(archive) as handle, tarfile.open(fileobj=cast(IO[bytes], _Bounded(handle)), mode="r:") as tar:
            tar.extractall(folder, members=_bounded(tar, room, archive.name), filter=_plain)  # noqa: S202 - see _plain
            while handle.read(MOST_AT_ONCE):  # the checksum stands behind the last member
                pass
    except (tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{archive.name}: not a sound model archive: {error}") from error


def _opened(archive: Path) -> BufferedIOBase:
    with archive.open("rb") as handle:
        zipped = handle.read(2) == b"\x1f\x8b"
    return gzip.open(archive) if zipped else archive.open("rb")


class _Bounded:
    """An archive's bytes, never many at once: tarfile takes a name, or a header's fields, of any size into memory."""

    def __init__(self, handle: BufferedIOBase) -> None:
        self._handle = handle
        self.tell, self.seek = handle.tell, handle.seek

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MOST_AT_ONCE:
            raise tarfile.ReadError("a header is too large")
        return self._handle.read(size)


def _bounded(tar: tarfile.TarFile, room: int, name: str) -> Iterator[tarfile.TarInfo]:
    size = 0
    for count, member in enumerate(tar, 1):
        size += member.size
        if count > MOST_MEMBERS:
            raise UserError(f"{name}: more than {MOST_MEMBERS:,} files; expected a model's artifact")
        if size > room:
            raise CapacityError(f"{name}: holds more than the {max(room, 0):,} bytes that the disk has room for")
        yield member


def _plain(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo | None:
    """Python's filter for data, and no links at all: a model needs none."""
    if not (member.isfile() or member.isdir()):
        raise tarfile.TarError(f"{member.name!r} is neither a file nor a folder")
    return tarfile.data_filter(member, folder)
