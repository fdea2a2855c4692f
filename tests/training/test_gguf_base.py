"""A run on a GGUF file: tuned as any base, its origin recorded, and its base found again when the cache is gone."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from gguf_models import TOKENS, tiny_llama, write_llama
from tiny_models import write_rows
from training.job_folders import lay_out, run

from luthier.errors import ModelNotFoundError
from luthier.home import cache_root
from luthier.weights.resolved_model import resolve_model


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    return write_llama(tmp_path / "base.gguf", tiny_llama(max_position_embeddings=512))


def test_an_adapter_finds_its_base_again(base: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows" / "rows.jsonl", 12)
    folder = lay_out(tmp_path / "run", base, rows.parent, score_rows=0)
    screen = run(folder)
    assert "dequantizing base.gguf (llama, F32, " in screen.replace("\n", " ")
    model = json.loads((folder.model / "luthier.json").read_text("utf-8"))["model"]
    digest = hashlib.sha256(base.read_bytes()).hexdigest()
    assert model["name"] == str(base)
    assert model["converted_from"] == {
        "folder": str(base.parent),
        "files": {"base.gguf": digest},
        "gguf": {"architecture": "llama", "quantization": "F32", "name": "Tiny Test"},
    }

    ids = torch.tensor([[5, 9, 70, len(TOKENS) - 1]])
    before = resolve_model(str(folder.root), print).load(torch.device("cpu"), torch.float32)
    shutil.rmtree(cache_root())
    after = resolve_model(str(folder.root), print).load(torch.device("cpu"), torch.float32)
    assert after.has_adapter
    with torch.no_grad():
        assert torch.equal(before.network(input_ids=ids).logits, after.network(input_ids=ids).logits)

    shutil.rmtree(cache_root())
    write_llama(base, tiny_llama(max_position_embeddings=512, rms_norm_eps=1e-3))
    with pytest.raises(ModelNotFoundError, match="not the weights that the adapter was trained on"):
        resolve_model(str(folder.root), print)


def test_all_weights_are_trained(base: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows" / "rows.jsonl", 12)
    folder = lay_out(tmp_path / "run", base, rows.parent, score_rows=0, peft_type="none")
    run(folder)
    config = json.loads((folder.model / "config.json").read_text("utf-8"))
    assert (config["architectures"], "quantization_config" in config) == (["LlamaForCausalLM"], False)
    shutil.rmtree(cache_root())  # the result needs the GGUF file no more
    base.unlink()
    loaded = resolve_model(str(folder.root), print).load(torch.device("cpu"), torch.float32)
    assert not loaded.has_adapter
