"""The header of a GGUF file: what it says, and every file that is not one whole language model."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_files import write_gguf

from luthier.catalog.gguf_header import GgufHeader, read_header
from luthier.catalog.hub import fetch
from luthier.catalog.locate import locate
from luthier.errors import ModelNotFoundError

METADATA: dict[str, Any] = {"general.architecture": "llama", "llama.context_length": 64, "tokens": ["a", "b c", "ü"]}
TENSORS: dict[str, Any] = {
    "token_embd.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
    "rope_freqs.weight": np.array([1, 2.5], np.float32),
    "output.weight": np.zeros((3, 8), np.float16),
}


def header_of(path: Path, **more: Any) -> GgufHeader:
    return read_header(write_gguf(path / "m.gguf", METADATA | more, TENSORS))


def refusal(file: Path) -> str:
    with pytest.raises(ModelNotFoundError) as caught:
        read_header(file)
    assert str(caught.value).startswith(f"{file}: ")
    return str(caught.value).removeprefix(f"{file}: ")


def test_what_it_says(tmp_path: Path) -> None:
    header = header_of(tmp_path)
    assert header.architecture == "llama"
    assert header.key("context_length") == 64
    assert header.metadata["tokens"] == ["a", "b c", "ü"]
    assert [(tensor.name, tensor.shape, tensor.type) for tensor in header.tensors] == [
        ("token_embd.weight", (3, 4), "F32"),
        ("rope_freqs.weight", (2,), "F32"),
        ("output.weight", (3, 8), "F16"),
    ]
    assert (header.parameters, header.quantization) == (12 + 24, "F16")
    assert header.read_floats("rope_freqs.weight") == [1, 2.5]
    assert header.read_floats("absent") == []


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"general.type": "adapter"}, "a LoRA adapter; tune the base model that it belongs to"),
        (
            {"general.architecture": "clip"},
            "the vision or audio part of a model; name the file with the language model",
        ),
        ({"general.type": "mmproj"}, "the vision or audio part of a model; name the file with the language model"),
        ({"general.type": "imatrix"}, "an importance matrix for quantization, not a model"),
        ({"general.architecture": ""}, "general.architecture is missing from its metadata"),
        (
            {"split.no": 1, "split.count": 4},
            "shard 2 of 4; join the shards into one file first: llama-gguf-split --merge FIRST-SHARD OUT.gguf",
        ),
    ],
)
def test_other_kinds_of_files(tmp_path: Path, metadata: dict[str, Any], message: str) -> None:
    assert refusal(write_gguf(tmp_path / "m.gguf", METADATA | metadata, TENSORS)) == message


def test_a_vocabulary_without_weights(tmp_path: Path) -> None:
    assert refusal(write_gguf(tmp_path / "m.gguf", METADATA, {})) == "a vocabulary without weights"


def test_every_truncation_is_one_line(tmp_path: Path) -> None:
    whole = write_gguf(tmp_path / "whole.gguf", METADATA, TENSORS).read_bytes()
    header = read_header(tmp_path / "whole.gguf")
    for length in range(header.end):
        file = tmp_path / "cut.gguf"
        file.write_bytes(whole[:length])
        assert "GGUF" in refusal(file), length


@pytest.mark.parametrize(
    ("version", "message"),
    [
        (struct.pack("<I", 1), "GGUF version 1; Luthier reads version 2 and 3, little-endian"),
        (struct.pack(">I", 3), "written for big-endian machines; Luthier reads version 2 and 3, little-endian"),
    ],
)
def test_other_versions(tmp_path: Path, version: bytes, message: str) -> None:
    file = write_gguf(tmp_path / "m.gguf", METADATA, TENSORS)
    file.write_bytes(b"GGUF" + version + file.read_bytes()[8:])
    assert refusal(file) == message


def test_not_gguf(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(b"PK\x03\x04" + bytes(100))
    assert refusal(file) == "not a GGUF file: it does not begin with the letters GGUF"
    file.write_bytes(b"")
    assert refusal(file).startswith("cannot be read as a GGUF file")


def test_locating_a_file_and_a_folder(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "Some-Model.Q4_K_M.gguf", METADATA | {"general.license": "mit"}, TENSORS)
    for name in (str(file), str(tmp_path)):
        found = locate(name, {})
        assert (found.folder, found.repository) == (file, None)
        assert found.entry is not None
        assert (found.entry.id, found.entry.parameters, found.entry.context_length) == (name, 36, 64)
        assert found.entry.licence.name == "mit"
    (tmp_path / "config.json").write_text("{}")  # as in repositories of GGUF files
    assert locate(str(tmp_path), {}).folder == file


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("b.gguf", "a.gguf"), "the folder has 2 GGUF files; name one of them: a.gguf, b.gguf"),
        (("m.gguf", "mmproj-m.gguf"), "the folder has 2 GGUF files; name one of them: m.gguf, mmproj-m.gguf"),
    ],
)
def test_a_folder_with_several(tmp_path: Path, names: tuple[str, ...], message: str) -> None:
    for name in names:
        write_gguf(tmp_path / name, METADATA, TENSORS)
    with pytest.raises(ModelNotFoundError) as caught:
        locate(str(tmp_path), {})
    assert str(caught.value) == f"{tmp_path}: {message}"


def test_other_weights_in_the_folder_win(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", METADATA, TENSORS)
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "config.json").write_text("{}")
    assert locate(str(tmp_path), {}).folder == tmp_path


def test_a_file_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="no such file; expected a GGUF file"):
        locate(str(tmp_path / "absent.gguf"), {})


def test_a_repository_in_the_mirror_or_the_cache_may_be_one_gguf_file(tmp_path: Path) -> None:
    blob = write_gguf(tmp_path / "blob.gguf", METADATA, TENSORS)
    for repository, folder, places in (
        ("org/m-GGUF", tmp_path / "mirror" / "org" / "m-GGUF", {"LUTHIER_MODELS": str(tmp_path / "mirror")}),
        (
            "org/c-GGUF",
            tmp_path / "hub" / "models--org--c-GGUF" / "snapshots" / "main",
            {"HF_HUB_CACHE": str(tmp_path / "hub")},
        ),
        ("gpt2-xl", tmp_path / "own" / "openai-community" / "gpt2-xl", {"LUTHIER_MODELS": str(tmp_path / "own")}),
    ):
        folder.mkdir(parents=True)
        link = folder / "m.Q4_0.GGUF"
        link.symlink_to(blob.rename(tmp_path / f"blob-{folder.name}"))
        found = locate(repository, places)
        assert (found.name, found.folder) == (repository, link)
        assert locate(str(link), {}).folder == link
        assert found.entry is not None
        assert found.entry.parameters == (1_557_611_200 if repository == "gpt2-xl" else 36)
        assert fetch(found, print) == link
        blob = write_gguf(tmp_path / "blob.gguf", METADATA, TENSORS)
