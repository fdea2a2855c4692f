"""The file that is written tensor by tensor is a safetensors file like any other."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from luthier.training.tensor_file import NAMES, StoredTensors, distribute_like, full_tensor, local_tensor, write_tensors

TENSORS = {
    "b.weight": torch.arange(6.0).reshape(2, 3),
    "a.bias": torch.ones(3, dtype=torch.bfloat16),
    "a.step": torch.tensor(7.0),
    "turned": torch.arange(6.0).reshape(2, 3).t(),
    "bytes": torch.arange(5, dtype=torch.uint8),
    "count": torch.tensor([1, -2]),
    "none": torch.zeros(0, 4),
    "größe": torch.tensor([True, False]),
    "grown": torch.nn.Parameter(torch.ones(2)),
}


def test_safetensors_reads_it(tmp_path: Path) -> None:
    digest = write_tensors(tmp_path / "x.safetensors", TENSORS)
    found = load_file(tmp_path / "x.safetensors")
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert found[name].dtype is tensor.dtype
        assert torch.equal(found[name], tensor)
    assert digest == hashlib.sha256((tmp_path / "x.safetensors").read_bytes()).hexdigest()


@pytest.mark.parametrize("dtype", NAMES, ids=str)
def test_every_type_is_named_as_safetensors_names_it(tmp_path: Path, dtype: torch.dtype) -> None:
    tensor = torch.tensor([[1, 0], [1, 1]]).to(dtype)
    write_tensors(tmp_path / "ours", {"x": tensor})
    save_file({"x": tensor}, tmp_path / "theirs")
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_each_tensor_starts_at_a_multiple_of_its_elements(tmp_path: Path) -> None:
    write_tensors(tmp_path / "x", TENSORS)
    content = (tmp_path / "x").read_bytes()
    size = int.from_bytes(content[:8], "little")
    assert size % 8 == 0
    for name, fields in json.loads(content[8 : 8 + size]).items():
        assert fields["data_offsets"][0] % TENSORS[name].element_size() == 0


def test_a_rank_that_does_not_write_leaves_nothing(tmp_path: Path) -> None:
    write_tensors(None, TENSORS)
    assert list(tmp_path.iterdir()) == []


def test_tensors_are_read_one_at_a_time(tmp_path: Path) -> None:
    write_tensors(tmp_path / "x", TENSORS)
    stored = StoredTensors(tmp_path / "x")
    assert set(stored) == set(TENSORS)
    assert len(stored) == len(TENSORS)
    assert torch.equal(stored["b.weight"], TENSORS["b.weight"])
    assert "c" not in stored
    with pytest.raises(KeyError):
        stored["c"]


def test_what_is_no_such_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"nothing of the kind")
    with pytest.raises(SafetensorError):
        StoredTensors(tmp_path / "x")


def test_a_tensor_that_is_not_sharded_is_whole() -> None:
    tensor = torch.ones(3)
    assert full_tensor(tensor) is local_tensor(tensor) is tensor
    assert torch.equal(distribute_like(tensor, torch.zeros(3)), tensor)
