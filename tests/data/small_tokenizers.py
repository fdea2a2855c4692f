"""Tokenizers of other makes, tiny and made up: Metaspace BPE with BOS, and Unigram with `</s>` among its pieces."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

TEXTS = ["the cat and the dog", "a cat, a dog, the end", "cat cat the the"] * 10


def metaspace_tokenizer(folder: Path, scheme: str) -> Path:
    """BPE behind SentencePiece's space mark, as in Llama; `scheme` is its prepend_scheme."""
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    backend.decoder = decoders.Metaspace(prepend_scheme=scheme, split=False)
    trainer = trainers.BpeTrainer(vocab_size=120, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    backend.train_from_iterator(TEXTS, trainer)
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return _save(backend, folder, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"})


def unigram_tokenizer(folder: Path) -> Path:
    """Unigram whose vocabulary holds the control token as a piece that plain text could match."""
    pieces = [("<unk>", 0.0), ("</s>", 0.0), *((letter, -5.0) for letter in "</s>ab "), ("ab", -3.0)]
    seen = dict(reversed(pieces))
    ordered = list(dict.fromkeys(name for name, _ in pieces))
    backend = Tokenizer(models.Unigram([(name, seen[name]) for name in ordered], unk_id=0))
    backend.add_special_tokens([AddedToken("<unk>", special=True), AddedToken("</s>", special=True)])
    return _save(backend, folder, {"eos_token": "</s>", "unk_token": "<unk>"})


def _save(backend: Tokenizer, folder: Path, config: dict[str, str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    stored = {"tokenizer_class": "PreTrainedTokenizerFast"} | config
    (folder / "tokenizer_config.json").write_text(json.dumps(stored))
    return folder
