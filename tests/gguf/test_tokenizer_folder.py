"""What `luthier inspect` reads of a GGUF file: config and tokenizer, no weights."""

from __future__ import annotations

from pathlib import Path

import pytest
from gguf_models import TOKENS, tiny_llama, write_llama

from luthier.catalog.locate import locate
from luthier.catalog.shape import context_length
from luthier.data.tokenize import Tokenizer
from luthier.gguf.tokenizer_folder import with_tokenizer


def test_a_gguf_file_gives_a_folder_without_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    file = write_llama(tmp_path / "m.gguf", tiny_llama())
    folder = with_tokenizer(file)
    assert with_tokenizer(file) == folder
    assert list((tmp_path / "cache").iterdir()) == [folder]
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "tokenizer.json", "tokenizer_config.json"]
    assert (Tokenizer.load(folder).vocab_size, context_length(folder)) == (len(TOKENS), 128)
    entry = locate(str(file), {}).with_folder(folder).entry
    assert entry is not None
    assert (entry.architecture, entry.shape["model_type"]) == ("LlamaForCausalLM", "llama")


def test_any_other_folder_stays(tmp_path: Path) -> None:
    assert with_tokenizer(tmp_path) == tmp_path
