"""The hash of a model's weights and config, to check that a resumed run or an adapter uses the same base."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path


@functools.lru_cache(maxsize=4)
def weights_hash(folder: Path) -> str:
    """sha256 over config.json and every safetensors file of a model folder, in name order."""
    digest = hashlib.sha256()
    for path in sorted([folder / "config.json", *folder.glob("*.safetensors")]):
        with open(path, "rb") as handle:
            digest.update(path.name.encode() + hashlib.file_digest(handle, "sha256").digest())
    return digest.hexdigest()
