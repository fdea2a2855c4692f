"""The hash of a model's weights and config, to check that a resumed run or an adapter uses the same base."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

from luthier.catalog.tuned_adapter import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from luthier.errors import ModelNotFoundError


@functools.lru_cache(maxsize=4)
def weights_hash(folder: Path) -> str:
    """sha256 over config.json and every safetensors file of a model folder, in name order."""
    digest = hashlib.sha256()
    for path in sorted([folder / "config.json", *folder.glob("*.safetensors")]):
        with open(path, "rb") as handle:
            digest.update(path.name.encode() + hashlib.file_digest(handle, "sha256").digest())
    return digest.hexdigest()


def adapter_hash(folder: Path) -> str:
    """sha256 over the config and the weights of an adapter."""
    digest = hashlib.sha256()
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        with open(folder / name, "rb") as handle:
            digest.update(hashlib.file_digest(handle, "sha256").digest())
    return digest.hexdigest()


def check_weights(folder: Path, sha256: str, name: str) -> None:
    """ModelNotFoundError unless the folder has the weights on which an adapter for the model `name` was trained."""
    if weights_hash(folder) != sha256:
        raise ModelNotFoundError(
            f"{folder}: not the weights that the adapter was trained on ({name}, sha256 {sha256[:12]}…); put those "
            "back, or export the run merged"
        )
