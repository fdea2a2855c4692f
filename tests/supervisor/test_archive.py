"""Archives from anybody: unpacked below their folder and within the disk's and the memory's bounds, or refused."""

from __future__ import annotations

import gzip
import io
import random
import shutil
import tarfile
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from luthier.errors import CapacityError, LuthierError, UserError
from luthier.supervisor import archive


def packed(folder: Path, fill: Callable[[tarfile.TarFile], None], zipped: bool = True) -> Path:
    path = folder / ("model.tar.gz" if zipped else "model.tar")
    with tarfile.open(path, "w:gz" if zipped else "w") as tar:
        fill(tar)
    return path


def add(tar: tarfile.TarFile, name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, target: str = "") -> None:
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.size = kind, target, len(content)
    tar.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_model_is_unpacked(tmp_path: Path, zipped: bool) -> None:
    def fill(tar: tarfile.TarFile) -> None:
        add(tar, "code", kind=tarfile.DIRTYPE)
        add(tar, "code/inference.py", b"pass")
        add(tar, "./" + "n" * 120 + "/model.bin", b"x" * 9_000_000)  # its name needs a header of its own

    archive.unpack(packed(tmp_path, fill, zipped), tmp_path / "model")
    files = {
        path.relative_to(tmp_path / "model").as_posix(): path.stat().st_size
        for path in (tmp_path / "model").rglob("*")
        if path.is_file()
    }
    assert files == {"code/inference.py": 4, "n" * 120 + "/model.bin": 9_000_000}


def links(tar: tarfile.TarFile) -> None:
    add(tar, "dir", kind=tarfile.SYMTYPE, target="/tmp")
    add(tar, "dir/evil", b"evil")


@pytest.mark.parametrize("fill", [
    links,
    lambda tar: add(tar, "../evil", b"evil"),
    lambda tar: add(tar, "a/../../evil", b"evil"),
    lambda tar: add(tar, "inner", kind=tarfile.SYMTYPE, target="config.json"),
    lambda tar: add(tar, "hard", kind=tarfile.LNKTYPE, target="../canary"),
    lambda tar: add(tar, "hard", kind=tarfile.LNKTYPE, target="config.json"),
    lambda tar: add(tar, "null", kind=tarfile.CHRTYPE),
    lambda tar: add(tar, "disk", kind=tarfile.BLKTYPE),
    lambda tar: add(tar, "pipe", kind=tarfile.FIFOTYPE),
], ids=["through a link", "up", "up from below", "link", "hard link", "hard link inside", "character device",
        "block device", "pipe"])  # fmt: skip
def test_what_is_no_plain_file_inside_is_refused(tmp_path: Path, fill: Callable[[tarfile.TarFile], None]) -> None:
    (tmp_path / "canary").write_text("as it was")
    with pytest.raises(UserError, match="not a sound model archive"):
        archive.unpack(packed(tmp_path, fill), tmp_path / "model")
    assert {path.name for path in tmp_path.iterdir()} == {"canary", "model.tar.gz", "model"}
    assert (tmp_path / "canary").read_text() == "as it was"
    assert list((tmp_path / "model").rglob("*")) == []


def test_an_absolute_name_becomes_one_inside(tmp_path: Path) -> None:
    archive.unpack(packed(tmp_path, lambda tar: add(tar, f"{tmp_path}/evil", b"x")), tmp_path / "model")
    assert not (tmp_path / "evil").exists()


def test_a_bomb_is_refused_before_it_fills_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = packed(tmp_path, lambda tar: add(tar, "zeros", bytes(20 << 20)))
    assert path.stat().st_size < 100_000
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=archive.RESERVE + (10 << 20)))
    with pytest.raises(CapacityError, match="holds more than the 10,485,760 bytes"):
        archive.unpack(path, tmp_path / "model")
    assert list((tmp_path / "model").rglob("*")) == []


def test_an_archive_of_too_many_files_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_MEMBERS", 10)

    def fill(tar: tarfile.TarFile) -> None:
        for number in range(11):
            add(tar, str(number))

    path = packed(tmp_path, fill)
    with pytest.raises(UserError, match="more than 10 files"):
        archive.unpack(path, tmp_path / "model")


def broken(good: bytes) -> Iterator[tuple[str, bytes]]:
    middle = len(good) // 2
    yield "half", good[:middle]
    yield "without its end", good[:-4]
    yield "empty", b""
    yield "no archive", b"no archive at all" * 50
    yield "a flipped byte", good[:middle] + bytes([good[middle] ^ 0xFF]) + good[middle + 1 :]


@pytest.mark.parametrize("how", ["half", "without its end", "empty", "no archive", "a flipped byte"])
def test_a_broken_archive_is_one_line(tmp_path: Path, how: str) -> None:
    noise = random.Random(1).randbytes(40_000)
    good = packed(tmp_path, lambda tar: add(tar, "weights", noise)).read_bytes()
    (tmp_path / "broken.tar.gz").write_bytes(dict(broken(good))[how])
    with pytest.raises(UserError, match=r"broken.tar.gz: not a sound model archive") as caught:
        archive.unpack(tmp_path / "broken.tar.gz", tmp_path / "model")
    assert "\n" not in str(caught.value)


def test_a_damaged_archive_is_refused(tmp_path: Path) -> None:
    path = packed(tmp_path, lambda tar: add(tar, "weights", bytes(1000)))
    content = bytearray(path.read_bytes())
    content[-6] ^= 1  # of the checksum
    path.write_bytes(content)
    with pytest.raises(UserError, match="not a sound model archive: CRC check failed"):
        archive.unpack(path, tmp_path / "model")


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_a_header_that_is_a_bomb_takes_no_memory(tmp_path: Path, kind: bytes) -> None:
    header = tarfile.TarInfo("header")
    header.type, header.size = kind, 50 << 20
    path = tmp_path / "model.tar.gz"
    with gzip.open(path, "wb", compresslevel=1) as handle:
        handle.write(header.tobuf(tarfile.GNU_FORMAT))
        for _ in range(50):
            handle.write(bytes(1 << 20))
    tracemalloc.start()
    try:
        with pytest.raises(LuthierError, match="not a sound model archive: a header is too large"):
            archive.unpack(path, tmp_path / "model")
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()
