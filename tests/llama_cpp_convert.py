"""Runs llama.cpp's converter on a model with any tokenizer.json, as if its pre-tokenizer were GPT-2's.

The converter recognizes published tokenizers by their ids, and some model classes need a SentencePiece file.
"""

from __future__ import annotations

import importlib
from typing import Any

import transformers


def main() -> None:
    text_model: Any = importlib.import_module("conversion.base").TextModel
    text_model.get_vocab_base_pre = lambda self, tokenizer: "gpt-2"
    text_model._set_vocab_sentencepiece = lambda self, *args, **kwargs: self._set_vocab_gpt2()
    for module, name in (("phi", "Phi3MiniModel"), ("t5", "T5Model")):
        kind: Any = getattr(importlib.import_module(f"conversion.{module}"), name)
        kind.set_vocab = lambda self: self._set_vocab_gpt2()
    auto: Any = transformers.AutoTokenizer
    auto.from_pretrained = lambda folder, **options: transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    converter: Any = importlib.import_module("convert_hf_to_gguf")
    converter.main()


if __name__ == "__main__":
    main()
