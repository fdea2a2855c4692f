"""Writes small GGUF files for tests, from the format's specification alone."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ALIGNMENT = 32
_UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9
TYPES = {np.dtype(np.float32): 0, np.dtype(np.float16): 1}
Array = np.ndarray[Any, np.dtype[Any]]


class Quantized(NamedTuple):
    """A tensor in blocks of 32 values: its ggml type, shape, blocks as stored, and the values that they stand for."""

    type: int
    shape: tuple[int, ...]
    blocks: bytes
    values: Array


def quantize_q8_0(values: Array) -> Quantized:
    """Q8_0: per block a float16 scale and 32 int8; a value is scale * integer."""
    rows = values.reshape(-1, 32)
    scales = (np.abs(rows).max(1, keepdims=True) / 127).astype("<f2")
    integers = np.round(rows / np.maximum(scales.astype(np.float32), 1e-9)).clip(-127, 127).astype(np.int8)
    blocks = b"".join(scale.tobytes() + row.tobytes() for scale, row in zip(scales, integers, strict=True))
    return Quantized(8, values.shape, blocks, (scales.astype(np.float32) * integers).reshape(values.shape))


def quantize_q4_1(values: Array) -> Quantized:
    """Q4_1: per block a float16 scale and minimum, and 32 nibbles, the first 16 low; scale * nibble + minimum."""
    rows = values.reshape(-1, 32)
    minima = rows.min(1, keepdims=True).astype("<f2")
    scales = ((rows.max(1, keepdims=True) - minima.astype(np.float32)) / 15).astype("<f2")
    levels = (rows - minima.astype(np.float32)) / np.maximum(scales.astype(np.float32), 1e-9)
    nibbles = np.round(levels).clip(0, 15).astype(np.uint8)
    packed = nibbles[:, :16] | nibbles[:, 16:] << 4
    blocks = b"".join(
        scale.tobytes() + minimum.tobytes() + row.tobytes()
        for scale, minimum, row in zip(scales, minima, packed, strict=True)
    )
    stored = scales.astype(np.float32) * nibbles + minima.astype(np.float32)
    return Quantized(3, values.shape, blocks, stored.reshape(values.shape))


def write_gguf(path: Path, metadata: Mapping[str, Any], tensors: Mapping[str, Array | Quantized]) -> Path:
    """Write float32, float16 or quantized tensors and metadata: str, bool, int, float, or a list of one of them.

    Numbers are uint32, in lists int32: the types that llama.cpp reads.
    """
    header = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    for name, value in metadata.items():
        header += _text(name) + struct.pack("<I", _type(value)) + _value(value)
    data = b""
    for name, tensor in tensors.items():
        kind, content = (
            (tensor.type, tensor.blocks) if isinstance(tensor, Quantized) else (TYPES[tensor.dtype], tensor.tobytes())
        )
        header += _text(name) + struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *reversed(tensor.shape))
        header += struct.pack("<IQ", kind, len(data))
        data += _padded(content)
    path.write_bytes(_padded(header) + data)
    return path


def _padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % ALIGNMENT)


def _text(value: str) -> bytes:
    content = value.encode()
    return struct.pack("<Q", len(content)) + content


def _type(value: Any) -> int:
    kinds = {bool: _BOOL, int: _UINT32, float: _FLOAT32, str: _STRING, list: _ARRAY}
    return kinds[type(value)]


def _value(value: Any) -> bytes:
    if isinstance(value, list):
        if isinstance(value[0], int):
            return struct.pack(f"<IQ{len(value)}i", _INT32, len(value), *value)
        return struct.pack("<IQ", _type(value[0]), len(value)) + b"".join(_value(item) for item in value)
    if isinstance(value, str):
        return _text(value)
    return struct.pack({bool: "<?", int: "<I", float: "<f"}[type(value)], value)
