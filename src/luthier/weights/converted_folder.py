"""A converted model in the cache: a whole model in Hugging Face layout, made once, checked by its recorded hash.

converted.json in it records the source files with their hashes, and the hash of the weights written.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from luthier.errors import CapacityError, UserError
from luthier.jobfolder import apply_umask, write_json
from luthier.weights.fingerprint import weights_hash

RECORD = "converted.json"


def conversion_source(folder: Path) -> dict[str, Any] | None:
    """The source of a converted folder: {"folder", "files": {name: sha256}}, and "gguf" where it was a GGUF file; None
    for any other folder.
    """
    record = _read_record(folder)
    return {name: record[name] for name in ("folder", "files", "gguf") if name in record} if record else None


def is_converted(target: Path) -> bool:
    """Whether the conversion is complete, with the recorded hash; a damaged one is removed."""
    record = _read_record(target)
    if record and (target / "config.json").is_file() and weights_hash(target) == record["weights_sha256"]:
        return True
    shutil.rmtree(target, ignore_errors=True)
    return False


def convert_into(target: Path, source: Path, convert: Callable[[Path], dict[str, Any]]) -> None:
    """Run `convert` in a temporary folder and publish it as `target`; what it returns is recorded with the hash.

    `source` is the folder of the original files.
    """
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            temporary.mkdir(parents=True)
        except OSError as error:
            raise UserError(
                f"{target.parent}: {error.strerror}; set LUTHIER_CACHE to a folder that can be written"
            ) from None
        facts = convert(temporary)
        record = {"format_version": 1, "folder": str(source), "weights_sha256": weights_hash(temporary)}
        write_json(temporary / RECORD, record | facts)
        apply_umask(temporary)
        weights_hash.cache_clear()
        try:
            temporary.rename(target)
        except OSError:  # another process converted the same files meanwhile
            if not is_converted(target):
                temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_disk_space(cache: Path, size: int) -> None:
    """CapacityError when the cache's disk has less than `size` bytes free."""
    existing = next(folder for folder in (cache, *cache.parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if size > free:
        raise CapacityError(
            f"{cache}: converting the weights to safetensors needs {format_size(size)} of disk and "
            f"{format_size(free)} are free; set LUTHIER_CACHE to a larger disk"
        )


def format_size(count: int) -> str:
    """Bytes as text: 12.5 MB, 0.54 GB."""
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def _read_record(folder: Path) -> dict[str, Any] | None:
    try:
        stored = json.loads((folder / RECORD).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return stored if isinstance(stored, dict) and "weights_sha256" in stored else None
