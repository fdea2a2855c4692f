"""Convert pickled weights (`.bin`) to safetensors, once; the result is a whole model in Hugging Face layout.

    pytorch_model.bin                                       ┐  child process   ┌ converted-<hash>/  model*.safetensors
    pytorch_model.bin.index.json, pytorch_model-*.bin       ┘  (unpickle.py)   └                    config, tokenizer

The result is cached under the hash of all its source files (converted_folder.py). Only the child process opens pickles.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from luthier.catalog.gguf_header import is_gguf
from luthier.errors import UserError
from luthier.home import cache_root
from luthier.weights.converted_folder import check_disk_space, convert_into, format_size, is_converted
from luthier.weights.gguf import convert_gguf
from luthier.weights.load import SAFETENSORS, absent_parameters

INDEX = "pytorch_model.bin.index.json"
COPIED = ("*.json", "*.model", "*.txt", "*.jinja")
# Environment variables that the child inherits: the paths of programs and libraries, no secrets.
CHILD_ENVIRONMENT = (
    "PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PYTHONPATH", "VIRTUAL_ENV",
)  # fmt: skip
CHILD = Path(__file__).with_name("unpickle.py")
_SHARD = re.compile(r"pytorch_model-(\d{5})-of-(\d{5})\.bin")


def convert_to_safetensors(folder: Path, notify: Callable[[str], None]) -> Path:
    """The folder to load a model from: `folder` itself, or the conversion of its pickled weights or of a GGUF file.

    Raises UserError for files that are damaged, incomplete, not weights, or do not fit config.json; CapacityError when
    the cache's disk is full. A folder without weights is returned unchanged.
    """
    if is_gguf(folder):
        return convert_gguf(folder, notify)
    if any((folder / name).is_file() for name in SAFETENSORS):
        return folder
    pickles = pickled_files(folder)
    if not pickles:
        return folder
    target = cache_root() / f"converted-{_source_hash(folder)}"
    size = sum(file.stat().st_size for file in pickles)
    source = pickles[0].name if len(pickles) == 1 else f"{len(pickles)} files {pickles[0].name} ..."
    if is_converted(target):
        notify(f"using the safetensors converted from {source} before: {target}")
        return target
    check_disk_space(target.parent, size)
    notify(f"converting {source} ({format_size(size)}) to safetensors, once: {target}")
    convert_into(target, folder, lambda temporary: _convert(folder, pickles, temporary))
    return target


def pickled_files(folder: Path) -> list[Path]:
    """The files of pickled weights, in order; an empty list without any. UserError when some are missing."""
    if (folder / "pytorch_model.bin").is_file():
        return [folder / "pytorch_model.bin"]
    if (folder / INDEX).is_file():
        names = _indexed_files(folder / INDEX)
    else:
        matches = [match for file in folder.glob("pytorch_model-*.bin") if (match := _SHARD.fullmatch(file.name))]
        counts = {int(match.group(2)) for match in matches}
        if len(counts) > 1:
            raise UserError(f"{folder}: holds pytorch_model shards of {len(counts)} different sets; keep one of them")
        names = [f"pytorch_model-{n + 1:05}-of-{count:05}.bin" for count in counts for n in range(count)]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"{folder}: {len(missing)} of {len(names)} weight files are missing (first: {missing[0]}); "
            "copy the whole model again"
        )
    return [folder / name for name in names]


def _indexed_files(index: Path) -> list[str]:
    try:
        names = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()), key=str)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{index}: expected JSON with a weight_map of names to files") from None
    outside = [name for name in names if not isinstance(name, str) or not name or Path(name).name != name]
    if outside or not names:
        raise UserError(f"{index}: weight_map must name files of its own folder; it names {outside[:1] or 'none'}")
    return names


@functools.lru_cache(maxsize=4)
def _hashes(folder: Path) -> dict[str, str]:
    """sha256 of every file that the conversion depends on, by name."""
    hashes = {}
    for file in sorted([*pickled_files(folder), *_copied_files(folder)]):
        with open(file, "rb") as handle:
            hashes[file.name] = hashlib.file_digest(handle, "sha256").hexdigest()
    return hashes


def _source_hash(folder: Path) -> str:
    return hashlib.sha256(json.dumps(_hashes(folder), sort_keys=True).encode()).hexdigest()


def _copied_files(folder: Path) -> list[Path]:
    """Configuration and tokenizer files, which are copied unchanged."""
    files = {file for pattern in COPIED for file in folder.glob(pattern) if file.is_file()}
    return sorted(file for file in files if not file.name.endswith(".index.json"))


def _convert(folder: Path, pickles: list[Path], temporary: Path) -> dict[str, Any]:
    """Write the converted model into `temporary`; the facts to record."""
    answer = _run_child(pickles, temporary)
    if "refused" in answer:
        raise UserError(f"{folder / str(answer.get('file'))}: {answer['refused']}")
    for file in _copied_files(folder):
        shutil.copyfile(file, temporary / file.name)
    _check_fit(folder, temporary)
    files = {name: digest for name, digest in _hashes(folder).items() if name.endswith(".bin")}
    return {"files": files, "tied": answer["tied"]}


def _run_child(pickles: list[Path], folder: Path) -> dict[str, Any]:
    """The child's answer. Its own process group shields it from Ctrl-C; it is killed when the wait fails."""
    request = json.dumps({"files": [str(file.absolute()) for file in pickles], "folder": str(folder.absolute())})
    environment = {name: os.environ[name] for name in CHILD_ENVIRONMENT if name in os.environ}
    environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    child = subprocess.Popen(
        [sys.executable, "-P", str(CHILD), request], stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, cwd=folder, process_group=0,
    )  # fmt: skip
    try:
        output, _ = child.communicate()
    except BaseException:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        raise
    try:
        answer = json.loads(output)
    except ValueError:
        status = f"signal {-child.returncode}" if child.returncode < 0 else f"exit {child.returncode}"
        raise UserError(
            f"{pickles[0].parent}: reading {pickles[0].name} ended the process that reads it ({status}); the "
            "file is damaged, or not weights"
        ) from None
    return answer if isinstance(answer, dict) else {}


def _check_fit(folder: Path, converted: Path) -> None:
    """UserError unless the converted weights have every parameter of the model class that config.json names."""
    try:
        absent = absent_parameters(converted)
    except UserError as error:
        raise UserError(str(error).replace(str(converted), str(folder))) from None
    if absent:
        raise UserError(
            f"{folder}: the stored weights lack {len(absent)} parameters that config.json asks for (first: "
            f"{absent[0]}); copy the whole model again"
        )
