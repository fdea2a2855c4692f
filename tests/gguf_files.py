"""Writes small GGUF files for tests, from the format's specification alone."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

ALIGNMENT = 32
_UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9
TYPES = {np.dtype(np.float32): 0, np.dtype(np.float16): 1}


def write_gguf(path: Path, metadata: Mapping[str, Any], tensors: Mapping[str, np.ndarray[Any, Any]]) -> Path:
    """Write float32 or float16 tensors and metadata: str, bool, int, float, or a list of one of them.

    Numbers are uint32, in lists int32: the types that llama.cpp reads.
    """
    header = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    for name, value in metadata.items():
        header += _text(name) + struct.pack("<I", _type(value)) + _value(value)
    data = b""
    for name, values in tensors.items():
        header += _text(name) + struct.pack(f"<I{values.ndim}Q", values.ndim, *reversed(values.shape))
        header += struct.pack("<IQ", TYPES[values.dtype], len(data))
        data += _padded(values.tobytes())
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
