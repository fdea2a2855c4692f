"""``python unpickle.py REQUEST``: convert pickled weights to safetensors, in a process with restricted rights.

A pickle can name any Python function. So PyTorch's weights-only unpickler reads it, in this child process, which gives
up rights before it opens the first file: limits on memory, time and file sizes, no core dump, no further process.
convert.py starts it and checks its output. It imports nothing from luthier, to start fast and small.

The request is JSON: {"files": [path, ...], "folder": the output folder}. The answer is one line of JSON on standard
output: {"tensors", "bytes", "tied": {name left out: name stored}}, or {"refused": reason, "file": name}.
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
MEMORY_TIMES, MEMORY_BESIDE = 3, 1 << 30  # address space: a multiple of the largest file, plus bytes
SECONDS, SECONDS_PER_GB = 60, 60
_CODE = re.compile(r"GLOBAL (\S+)")


class RefusedError(Exception):
    """A file is not weights, or is damaged; the message is the reason in one line."""


@dataclass(kw_only=True)
class SafetensorsWriter:
    """Collects tensors into safetensors files of bounded size; identical views of one storage are written once."""

    folder: Path
    parts: list[Path] = field(default_factory=list)
    place: dict[str, int] = field(default_factory=dict)
    tied: dict[str, str] = field(default_factory=dict)
    bytes: int = 0
    _pending: dict[str, Tensor] = field(default_factory=dict)
    _size: int = 0

    def add(self, tensors: Mapping[str, Tensor]) -> None:
        """Add the tensors of one source file and write them; their memory may be freed afterwards."""
        names_by_view: dict[tuple[object, ...], str] = {}
        for name, tensor in tensors.items():
            if name in self.place or name in self.tied:
                raise RefusedError(f"{name!r} is in an earlier file, too")
            view = (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.shape, tensor.stride())
            stored_name = names_by_view.setdefault((*view, tensor.dtype), name) if tensor.numel() else name
            if stored_name != name:
                self.tied[name] = stored_name
                continue
            size = tensor.numel() * tensor.element_size()
            if self._pending and self._size + size > SHARD_BYTES:
                self.flush()
            self.place[name] = len(self.parts)
            self._pending[name] = tensor
            self._size += size
        self.flush()

    def flush(self) -> None:
        """Write the pending tensors as one file, each cloned, because safetensors allows no shared memory."""
        if self._pending:
            part = self.folder / f"part-{len(self.parts)}"
            clones = {
                name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in self._pending.items()
            }
            save_file(clones, part, metadata={"format": "pt"})
            self.parts.append(part)
            self.bytes += self._size
        self._pending, self._size = {}, 0

    def finish(self) -> None:
        """Rename the files to transformers' layout; write the index if there are several."""
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
    """Answer one request under resource limits; the exit status is 0 whenever there is an answer."""
    request = json.loads(arguments[0])
    files = [Path(file) for file in request["files"]]
    confine([file.stat().st_size for file in files])
    sys.stdout.write(json.dumps(convert(files, Path(request["folder"]))) + "\n")
    sys.stdout.flush()
    return 0


def convert(files: list[Path], folder: Path) -> dict[str, object]:
    """Write the tensors of `files` into `folder` and return the answer, for any content of the files."""
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
    except Exception as error:  # a foreign file can provoke any error; all are answers
        return {"refused": reason_of(error), "file": file.name}
    return {"tensors": len(writer.place), "bytes": writer.bytes, "tied": writer.tied}


def confine(sizes: list[int]) -> None:
    """Set this process's resource limits by the sizes of the files, as far as the system supports them."""
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
            _lower_limit(number, limit)


def _lower_limit(number: int, limit: int) -> None:
    _, hard_limit = resource.getrlimit(number)
    new_limit = limit if hard_limit == resource.RLIM_INFINITY else min(limit, hard_limit)
    try:
        resource.setrlimit(number, (new_limit, new_limit))
    except (ValueError, OSError):
        if sys.platform == "linux":  # other systems reject some of these limits
            raise


def _address_space() -> int:
    """Bytes of address space in use: the libraries alone take gigabytes."""
    status = Path("/proc/self/statm")
    return int(status.read_text("ascii").split()[0]) * resource.getpagesize() if status.exists() else 0


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of one file by name, memory-mapped if its format allows. RefusedError if it holds anything else."""
    with open(path, "rb") as handle:
        start = handle.read(24)
    if start.startswith(b"version https://git-lfs"):
        raise RefusedError("is a Git LFS pointer, not the weights; fetch them with git lfs pull")
    is_zip = start.startswith(b"PK\x03\x04")  # the format before PyTorch 1.6 is no archive and cannot be mapped
    content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    if not isinstance(content, Mapping):
        raise RefusedError(f"holds a {type(content).__name__} where a mapping of names to tensors is expected")
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise RefusedError(f"holds a {type(tensor).__name__} under {str(name)[:60]!r} where a tensor is expected")
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            raise RefusedError(f"{name!r} is not a plain dense tensor")
    return {name: tensor.detach() for name, tensor in content.items()}


def reason_of(error: Exception) -> str:
    """Why a file was refused, in one line."""
    text = str(error)
    code = _CODE.search(text)
    if isinstance(error, pickle.UnpicklingError) and code:
        return f"asks for {code.group(1)[:80]}, which is code and no weights: refused"
    if isinstance(error, MemoryError) or "allocate memory" in text or "not enough memory" in text:
        return "asks for far more memory than weights of its size need: refused"
    # PyTorch's message for a rejected pickle advises to turn weights_only off: left out.
    line = "" if "eights" in text else text.strip().splitlines()[0][:120] if text.strip() else ""
    return "is damaged, or not weights that PyTorch wrote" + (f" ({line})" if line else "")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
