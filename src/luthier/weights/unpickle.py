"""``python unpickle.py REQUEST``: pickled weights to safetensors, in a process that can do little else.

A pickle can name any function of Python. So it is read with PyTorch's weights-only unpickler, and besides in this
child, which gives its rights away before it opens the first file: bounded memory, time and file sizes, no core dump, no
further process. It knows tensors and files, nothing of models; convert.py starts it and judges what it leaves. It
imports nothing of Luthier's, so that it starts fast and small.

The request is JSON: {"files": [path, ...], "folder": where the safetensors go}. The answer is one line of JSON on
standard output: {"tensors", "bytes", "tied": {name left out: name that holds it}}, or {"refused": why, "file": name}.
"""

from __future__ import annotations

import json
import pickle
import re
import resource
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

SHARD_BYTES = 1_000_000_000
MEMORY_TIMES, MEMORY_BESIDE = 3, 1 << 30  # address space: so many times the largest file, and so many bytes
SECONDS, SECONDS_PER_GB = 60, 60
_CODE = re.compile(r"GLOBAL (\S+)")


class RefusedError(Exception):
    """A file that is not weights, or not whole; the reason in one line."""


@dataclass(kw_only=True)
class SafetensorsWriter:
    """Collects tensors into safetensors files of bounded size; identical views of one storage are written once."""

    folder: Path
    parts: list[Path] = field(default_factory=list)
    place: dict[str, int] = field(default_factory=dict)
    tied: dict[str, str] = field(default_factory=dict)
    bytes: int = 0
    _waiting: dict[str, Tensor] = field(default_factory=dict)
    _size: int = 0

    def add(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the tensors of one source file; their memory may go once this returns."""
        seen: dict[tuple[object, ...], str] = {}
        for name, tensor in tensors.items():
            if name in self.place or name in self.tied:
                raise RefusedError(f"{name!r} is in an earlier file, too")
            view = (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.shape, tensor.stride())
            kept = seen.setdefault((*view, tensor.dtype), name) if tensor.numel() else name
            if kept != name:
                self.tied[name] = kept
                continue
            size = tensor.numel() * tensor.element_size()
            if self._waiting and self._size + size > SHARD_BYTES:
                self.flush()
            self.place[name] = len(self.parts)
            self._waiting[name] = tensor
            self._size += size
        self.flush()

    def flush(self) -> None:
        """Write what waits. Every tensor is laid out on its own, so that none shares memory with another."""
        if self._waiting:
            part = self.folder / f"part-{len(self.parts)}"
            laid_out = {
                name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in self._waiting.items()
            }
            save_file(laid_out, part, metadata={"format": "pt"})
            self.parts.append(part)
            self.bytes += self._size
        self._waiting, self._size = {}, 0

    def finish(self) -> None:
        """Give the files the names of transformers' layout, and write the index if they are several."""
        if len(self.parts) == 1:
            self.parts[0].rename(self.folder / "model.safetensors")
            return
        count = len(self.parts)
        names = [f"model-{number + 1:05}-of-{count:05}.safetensors" for number in range(count)]
        for part, name in zip(self.parts, names, strict=True):
            part.rename(self.folder / name)
        index = {"metadata": {"total_size": self.bytes}, "weight_map": {k: names[v] for k, v in self.place.items()}}
        (self.folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1), "utf-8")


def main(arguments: list[str]) -> int:
    """Answer one request within bounds; the exit status is 0 whenever there is an answer."""
    request = json.loads(arguments[0])
    files = [Path(file) for file in request["files"]]
    confine([file.stat().st_size for file in files])
    sys.stdout.write(json.dumps(convert(files, Path(request["folder"]))) + "\n")
    sys.stdout.flush()
    return 0


def convert(files: list[Path], folder: Path) -> dict[str, object]:
    """Write the tensors of `files` into `folder`; the answer, whatever the files hold."""
    writer = SafetensorsWriter(folder=folder)
    file = files[0]
    try:
        for file in files:
            writer.add(read(file))
        if not writer.parts:
            raise RefusedError("holds no tensor")
        writer.finish()
    except RefusedError as error:
        return {"refused": str(error), "file": file.name}
    except Exception as error:  # every fault that a foreign file can provoke is an answer, none is a traceback
        return {"refused": reason_of(error), "file": file.name}
    return {"tensors": len(writer.place), "bytes": writer.bytes, "tied": writer.tied}


def confine(sizes: list[int]) -> None:
    """Bound what this process may use, by the sizes of the files; where the system has such limits."""
    largest, total = max(sizes), sum(sizes)
    seconds = SECONDS + SECONDS_PER_GB * total // 10**9
    limits = {
        "RLIMIT_AS": _address_space() + MEMORY_TIMES * largest + MEMORY_BESIDE,
        "RLIMIT_CPU": seconds,
        "RLIMIT_FSIZE": total + MEMORY_BESIDE,
        "RLIMIT_CORE": 0,
        "RLIMIT_NPROC": 0,
    }
    for name, limit in limits.items():
        number = getattr(resource, name, None)
        if number is not None:
            _lower(number, limit)


def _lower(number: int, limit: int) -> None:
    _, most = resource.getrlimit(number)
    bounded = limit if most == resource.RLIM_INFINITY else min(limit, most)
    try:
        resource.setrlimit(number, (bounded, bounded))
    except (ValueError, OSError):
        if sys.platform == "linux":  # others refuse some of these limits altogether
            raise


def _address_space() -> int:
    """Bytes of address space in use: libraries take gigabytes of it before anything is read."""
    status = Path("/proc/self/statm")
    return int(status.read_text("ascii").split()[0]) * resource.getpagesize() if status.exists() else 0


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of one file by name, memory-mapped where its format allows. RefusedError for anything else in it."""
    with open(path, "rb") as handle:
        start = handle.read(24)
    if start.startswith(b"version https://git-lfs"):
        raise RefusedError("is a Git LFS pointer, not the weights; fetch them with git lfs pull")
    mapped = start.startswith(b"PK\x03\x04")  # the format before PyTorch 1.6 is no archive and cannot be mapped
    found = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    if not isinstance(found, Mapping):
        raise RefusedError(f"holds a {type(found).__name__} where a mapping of names to tensors is expected")
    for name, tensor in found.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise RefusedError(f"holds a {type(tensor).__name__} under {str(name)[:60]!r} where a tensor is expected")
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            raise RefusedError(f"{name!r} is not a plain dense tensor")
    return {name: tensor.detach() for name, tensor in found.items()}


def reason_of(error: Exception) -> str:
    """What went wrong with a file, in one line."""
    text = str(error)
    code = _CODE.search(text)
    if isinstance(error, pickle.UnpicklingError) and code:
        return f"asks for {code.group(1)[:80]}, which is code and no weights: refused"
    if isinstance(error, MemoryError) or "allocate memory" in text or "not enough memory" in text:
        return "asks for far more memory than weights of its size need: refused"
    # What PyTorch says of a pickle it refuses advises to switch the check off.
    line = "" if "eights" in text else text.strip().splitlines()[0][:120] if text.strip() else ""
    return "is damaged, or not weights that PyTorch wrote" + (f" ({line})" if line else "")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
