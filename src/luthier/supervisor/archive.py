"""Downloads a model's artifact into a folder and unpacks it, as untrusted input.

Anybody who can write to the bucket can replace it: so no member is written outside the folder, only regular files and
folders are created, and no more than fits on the disk.
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

MAX_MEMBERS = 100_000
MAX_READ = 4 << 20  # bytes of one read
RESERVE = 256 << 20  # bytes of disk that are left free
_SUFFIXES = (".tar.gz", ".tgz", ".tar")


def fetch(objects: ArtifactStore, uri: str, folder: Path) -> None:
    """Download the model at `uri`, an archive or a prefix of files, into `folder`, completely or not at all.

    UserError for a missing object or an invalid archive; CapacityError for one that does not fit on the disk.
    """
    shutil.rmtree(folder, ignore_errors=True)
    partial = folder.with_name(f".{folder.name}.arriving")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        (partial / "download").mkdir(parents=True)
        objects.download_prefix(uri, partial / "download")
        files = [path for path in (partial / "download").rglob("*") if path.is_file()]
        if len(files) == 1 and files[0].name.endswith(_SUFFIXES):
            unpack(files[0], partial / "model")
            (partial / "model").rename(folder)
        else:
            (partial / "download").rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a tar, gzipped or not. UserError for damage, and for members other than regular files and folders."""
    folder.mkdir(parents=True)
    free_bytes = shutil.disk_usage(folder).free - RESERVE
    try:
        with _open_tar(archive) as handle, tarfile.open(fileobj=cast(IO[bytes], _Bounded(handle)), mode="r:") as tar:
            tar.extractall(folder, members=_check_members(tar, free_bytes, archive.name), filter=_regular_file)  # noqa: S202 - see _regular_file
            while handle.read(MAX_READ):  # so that the checksum after the last member is checked
                pass
    except (tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{archive.name}: not a sound model archive: {error}") from error


def _open_tar(archive: Path) -> BufferedIOBase:
    with archive.open("rb") as handle:
        zipped = handle.read(2) == b"\x1f\x8b"
    return gzip.open(archive) if zipped else archive.open("rb")


class _Bounded:
    """Limits the size of one read, because tarfile reads names and header fields of any size into memory."""

    def __init__(self, handle: BufferedIOBase) -> None:
        self._handle = handle
        self.tell, self.seek = handle.tell, handle.seek

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_READ:
            raise tarfile.ReadError("a header is too large")
        return self._handle.read(size)


def _check_members(tar: tarfile.TarFile, free_bytes: int, name: str) -> Iterator[tarfile.TarInfo]:
    size = 0
    for count, member in enumerate(tar, 1):
        size += member.size
        if count > MAX_MEMBERS:
            raise UserError(f"{name}: more than {MAX_MEMBERS:,} files; expected a model's artifact")
        if size > free_bytes:
            raise CapacityError(f"{name}: holds more than the {max(free_bytes, 0):,} bytes free on the disk")
        yield member


def _regular_file(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo | None:
    """Python's data filter, which here refuses links, too."""
    if not (member.isfile() or member.isdir()):
        raise tarfile.TarError(f"{member.name!r} is neither a file nor a folder")
    return tarfile.data_filter(member, folder)
