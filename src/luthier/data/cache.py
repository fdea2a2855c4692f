"""Prepared data on disk, by content hash: built in a folder beside, renamed into place, verified before reuse.

    <cache>/<key>/   ids.bin offsets.npy spans.npy spanned.npy   the token store
                     entries.npy owner.npy [sides.npy]           the row table, the row of each stored row, its splits
                     meta.json                                   what applied, and the checksum of every file

A folder that fails its checksums is set aside and built again. It knows files, nothing of rows.
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
    """A name for JSON-ready facts: sha256 of their canonical form."""
    text = json.dumps(facts, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def find(cache: Path, key: str) -> Path | None:
    """The folder of `key` when it is there and whole."""
    folder = cache / key
    meta = read_meta(folder)
    if meta is None:
        return None
    if all(_checksum(folder / name) == expected for name, expected in meta["checksums"].items()):
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    return None


def read_meta(folder: Path) -> dict[str, Any] | None:
    """meta.json of a folder; None when it is missing or torn."""
    try:
        stored = json.loads((folder / META).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return stored if isinstance(stored, dict) and "checksums" in stored else None


def store(cache: Path, key: str, build: Callable[[Path], dict[str, Any]]) -> Path:
    """Let `build` fill a folder and return its meta; put it in place in one step."""
    with _beside(cache, key) as temporary:
        meta = build(temporary)
        meta["checksums"] = {path.name: _checksum(path) for path in sorted(temporary.iterdir())}
        (temporary / META).write_text(json.dumps(meta, ensure_ascii=False), "utf-8")
        target = cache / key
        try:
            temporary.rename(target)
        except OSError:  # another process put the same content there first, or left a torn folder
            if find(cache, key) is None:
                shutil.rmtree(target, ignore_errors=True)
                temporary.rename(target)
        return target


@contextmanager
def _beside(cache: Path, key: str) -> Iterator[Path]:
    temporary = cache / f".{key}.{os.getpid()}"
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"{cache}: {error.strerror}; set LUTHIER_CACHE to a folder that can be written") from None
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
