"""Tokenized data on disk, keyed by content hash: built in a temporary folder, renamed into place, verified before use.

    <cache>/<key>/   ids.bin offsets.npy spans.npy spanned.npy   the token store
                     entries.npy owner.npy [sides.npy]           the row table, the input row of each stored row, splits
                     meta.json                                   template and warnings, checksum of every file

A folder whose checksums differ is removed and built again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from luthier.errors import UserError

META = "meta.json"


def key_of(facts: Any) -> str:
    """sha256 of JSON-ready facts in canonical form."""
    text = json.dumps(facts, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def find(cache: Path, key: str) -> Path | None:
    """Return the folder of `key` if it exists and its checksums match."""
    folder = cache / key
    meta = read_meta(folder)
    if meta is None:
        return None
    if all(_checksum(folder / name) == expected for name, expected in meta["checksums"].items()):
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    return None


def read_meta(folder: Path) -> dict[str, Any] | None:
    """Return meta.json of a folder; None when it is missing or incomplete."""
    try:
        stored = json.loads((folder / META).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return stored if isinstance(stored, dict) and "checksums" in stored else None


def store(cache: Path, key: str, build: Callable[[Path], dict[str, Any]]) -> Path:
    """Let `build` write a folder and return its metadata, then rename the folder into place atomically."""
    with _temporary_folder(cache, key) as temporary:
        meta = build(temporary)
        meta["checksums"] = {path.name: _checksum(path) for path in sorted(temporary.iterdir())}
        (temporary / META).write_text(json.dumps(meta, ensure_ascii=False), "utf-8")
        target = cache / key
        try:
            temporary.rename(target)
        except OSError:  # another process stored the same content first, or left an incomplete folder
            if find(cache, key) is None:
                shutil.rmtree(target, ignore_errors=True)
                temporary.rename(target)
        return target


@contextmanager
def _temporary_folder(cache: Path, key: str) -> Iterator[Path]:
    temporary = cache / f".{key}.{os.getpid()}"
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"{cache}: {error.strerror}; set LUTHIER_CACHE to a writable folder") from None
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _checksum(path: Path) -> str:
    try:
        with open(path, "rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError:
        return ""
