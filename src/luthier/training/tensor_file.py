"""A safetensors file written and read one tensor at a time, from full tensors or tensors sharded over ranks.

    8 bytes   length of the header
    header    JSON: name -> dtype, shape, [start, end) in the data
    data      the tensors end to end, little-endian

Memory holds one full tensor at a time. Layout: github.com/huggingface/safetensors, "Format".
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
_ALIGNMENT = 8  # required by the format


def full_tensor(tensor: Tensor) -> Tensor:
    """The tensor itself; a sharded one is all-gathered, so every rank must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local_tensor(tensor: Tensor) -> Tensor:
    """The tensor itself, or this rank's shard of it; shares its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def distribute_like(value: Tensor, target: Tensor) -> Tensor:
    """Move a full tensor to the device of `target`, sharded like it where the shapes are equal."""
    if isinstance(target, DTensor) and value.shape == target.shape:
        return distribute_tensor(value.to(target.device), target.device_mesh, target.placements, src_data_rank=None)
    return value.to(target.device)


def write_tensors(path: Path | None, tensors: Mapping[str, Tensor]) -> str:
    """Write a file and return its sha256. With sharded tensors every rank calls this, all but one without a path."""
    assert sys.byteorder == "little"
    header: dict[str, Any] = {}
    end = 0
    # Large elements first, so that each tensor starts at a multiple of its element size.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    for name in names:
        start, end = end, end + tensors[name].numel() * tensors[name].element_size()
        shape = list(tensors[name].shape)
        header[name] = {"dtype": NAMES[tensors[name].dtype], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    digest = hashlib.sha256()
    handle = open(path, "wb") if path else None  # noqa: SIM115 - closed below
    try:
        for part in _content(text, names, tensors, path is not None):
            digest.update(part)
            if handle:
                handle.write(part)
        if handle:
            handle.flush()
            os.fsync(handle.fileno())
    finally:
        if handle:
            handle.close()
    return digest.hexdigest()


def _content(header: bytes, names: list[str], tensors: Mapping[str, Tensor], is_writer: bool) -> Iterator[Any]:
    """The file's content, tensor by tensor; other ranks only join the all-gathers."""
    if is_writer:
        yield len(header).to_bytes(8, "little") + header
    for name in names:
        tensor = full_tensor(tensors[name].detach())
        if is_writer:
            yield tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


class StoredTensors(Mapping[str, Tensor]):
    """The tensors of a file by name, each read on access. SafetensorError when it is not a safetensors file."""

    def __init__(self, path: Path) -> None:
        opened: Any = safe_open
        self._file = opened(str(path), framework="pt")
        self._names: tuple[str, ...] = tuple(self._file.keys())

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        tensor: Tensor = self._file.get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
