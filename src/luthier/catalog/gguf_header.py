"""Reads the header of a GGUF file: metadata and the table of tensors, no weights.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Version 2 and 3, little-endian.
"""

from __future__ import annotations

import mmap
import struct
from collections import Counter
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from luthier.errors import ModelNotFoundError

SUFFIX = ".gguf"
READABLE = (
    "bloom", "gemma2", "gemma3", "gpt2", "lfm2", "llama", "mamba", "nemotron", "phi3", "qwen2", "qwen3", "qwen35",
    "qwen3moe", "stablelm", "starcoder2", "t5",
)  # fmt: skip
"""llama.cpp's names of the architectures that `luthier.gguf` and transformers read with equal logits."""
_MAGIC = b"GGUF"
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
# Names of ggml's tensor types: https://github.com/ggml-org/ggml/blob/master/include/ggml.h (enum ggml_type).
TENSOR_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K",
    12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S",
    20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64",
    29: "IQ1_M", 30: "BF16", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4",
}  # fmt: skip
_OTHER_KINDS = {
    "adapter": "a LoRA adapter; tune the base model that it belongs to",
    "mmproj": "the vision or audio part of a model; name the file with the language model",
    "vocab": "a vocabulary without weights",
    "imatrix": "an importance matrix for quantization, not a model",
}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor's name, shape (outermost dimension first), ggml type by name, and offset in the data, in bytes."""

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """What a GGUF file says about its model; `end` is the offset after the table of tensors, in bytes."""

    file: Path
    metadata: dict[str, Any]
    tensors: tuple[StoredTensor, ...]
    end: int

    @property
    def architecture(self) -> str:
        """llama.cpp's name of the architecture: llama, qwen2, gemma3, ..."""
        return str(self.metadata.get("general.architecture", ""))

    @property
    def parameters(self) -> int:
        """Values of all weight tensors; precomputed rotary factors are not weights."""
        return sum(prod(tensor.shape) for tensor in self.tensors if not tensor.name.startswith("rope_"))

    @property
    def quantization(self) -> str:
        """The tensor type that holds most values, such as Q4_K."""
        values: Counter[str] = Counter()
        for tensor in self.tensors:
            values[tensor.type] += prod(tensor.shape)
        return values.most_common(1)[0][0] if values else "none"

    def read_floats(self, name: str) -> list[float]:
        """The values of a small F32 tensor, such as rotary factors; an empty list when there is none of this name."""
        tensor = next((tensor for tensor in self.tensors if tensor.name == name), None)
        if tensor is None:
            return []
        alignment = self.metadata.get("general.alignment", 32)
        start = -(-self.end // alignment) * alignment + tensor.offset
        count = prod(tensor.shape)
        with open(self.file, "rb") as handle:
            handle.seek(start)
            content = handle.read(4 * count)
        if tensor.type != "F32" or len(content) < 4 * count:
            raise ModelNotFoundError(f"{self.file}: expected the values of {name} as F32; copy or convert it again")
        return [float(f"{value:.9g}") for value in struct.unpack(f"<{count}f", content)]

    def key(self, name: str) -> Any:
        """The value of `<architecture>.<name>`; None when it is absent."""
        return self.metadata.get(f"{self.architecture}.{name}")


def is_gguf(path: Path) -> bool:
    """Whether a path names a GGUF file, by its suffix in any case."""
    return path.suffix.lower() == SUFFIX


def read_header(file: Path) -> GgufHeader:
    """Read a GGUF file's header.

    ModelNotFoundError, naming the file, for one that is damaged, byte-swapped, one of several shards, holds no language
    model (an adapter, a vision projector, a vocabulary), or one of an architecture that cannot be read.
    """
    try:
        with open(file, "rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as content:
            header = _parse(file, content)
    except (struct.error, UnicodeDecodeError, IndexError, OverflowError, MemoryError):
        raise ModelNotFoundError(f"{file}: not a complete GGUF file; copy it again") from None
    except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
        raise ModelNotFoundError(f"{file}: cannot be read as a GGUF file ({error}); copy it again") from None
    _check_kind(header)
    return header


class _Cursor:
    """Reads values one after the other."""

    def __init__(self, content: mmap.mmap, position: int) -> None:
        self._content = content
        self.position = position

    def number(self, code: str) -> Any:
        form = f"<{code}"
        (value,) = struct.unpack_from(form, self._content, self.position)
        self.position += struct.calcsize(form)
        return value

    def text(self) -> str:
        length = self.number("Q")
        start, self.position = self.position, self.position + length
        if self.position > len(self._content):
            raise IndexError
        return self._content[start : self.position].decode("utf-8")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            return self.number(_NUMBERS[kind])
        element, count = self.number("I"), self.number("Q")
        if element not in _NUMBERS:
            return [self.value(element) for _ in range(count)]
        form = f"<{count}{_NUMBERS[element]}"
        values = struct.unpack_from(form, self._content, self.position)
        self.position += struct.calcsize(form)
        return list(values)


def _parse(file: Path, content: mmap.mmap) -> GgufHeader:
    if content[:4] != _MAGIC:
        raise ModelNotFoundError(f"{file}: not a GGUF file: it does not begin with the letters GGUF")
    cursor = _Cursor(content, 4)
    version = cursor.number("I")
    if version not in (2, 3):
        reason = "written for big-endian machines" if version in (2 << 24, 3 << 24) else f"GGUF version {version}"
        raise ModelNotFoundError(f"{file}: {reason}; Luthier reads version 2 and 3, little-endian")
    tensor_count, metadata_count = cursor.number("Q"), cursor.number("Q")
    metadata: dict[str, Any] = {}
    for _ in range(metadata_count):
        name = cursor.text()
        kind = cursor.number("I")
        if kind not in _NUMBERS and kind not in (_STRING, _ARRAY):
            raise ModelNotFoundError(f"{file}: {name} has the unknown value type {kind}")
        metadata[name] = cursor.value(kind)
    tensors = []
    for _ in range(tensor_count):
        name = cursor.text()
        shape = tuple(cursor.number("Q") for _ in range(cursor.number("I")))
        kind = cursor.number("I")
        tensors.append(StoredTensor(name, shape[::-1], TENSOR_TYPES.get(kind, f"type {kind}"), cursor.number("Q")))
    return GgufHeader(file, metadata, tuple(tensors), cursor.position)


def _check_kind(header: GgufHeader) -> None:
    """ModelNotFoundError for a GGUF file that is not one whole language model."""
    kind = header.metadata.get("general.type", "model")
    if header.architecture == "clip":
        kind = "mmproj"
    if kind in _OTHER_KINDS:
        raise ModelNotFoundError(f"{header.file}: {_OTHER_KINDS[kind]}")
    if not header.architecture:
        raise ModelNotFoundError(f"{header.file}: general.architecture is missing from its metadata")
    shards = header.metadata.get("split.count", 0)
    if shards > 1:
        raise ModelNotFoundError(
            f"{header.file}: shard {header.metadata.get('split.no', 0) + 1} of {shards}; join the shards into one file "
            "first: llama-gguf-split --merge FIRST-SHARD OUT.gguf"
        )
    if not header.tensors:
        raise ModelNotFoundError(f"{header.file}: {_OTHER_KINDS['vocab']}")
    if header.architecture not in READABLE:
        raise ModelNotFoundError(
            f"{header.file}: GGUF files of architecture {header.architecture!r} cannot be read; those of "
            f"{', '.join(READABLE)} can; take the model's safetensors instead"
        )
