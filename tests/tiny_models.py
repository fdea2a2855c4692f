"""Random models of the real Hugging Face classes, scaled down, with a small tokenizer: what the proofs run on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoXConfig, LlamaConfig, PreTrainedModel

ARCHITECTURES = ("llama", "gpt_neox", "gpt2")
CONTROLS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WORDS = "the a cat dog sat on mat red blue green one two three question answer response review good bad ### : + = 1 2"


def config_of(architecture: str, vocab_size: int = 320, positions: int = 256, dropout: float = 0.0) -> Any:
    """A small config of one of ARCHITECTURES; initial weights are large enough for losses to differ visibly."""
    common: dict[str, Any] = {"vocab_size": vocab_size, "initializer_range": 0.1, "eos_token_id": 0}
    common["bos_token_id"] = None
    if architecture == "llama":
        return LlamaConfig(
            hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            max_position_embeddings=positions, attention_dropout=dropout, **common,
        )  # fmt: skip
    if architecture == "gpt_neox":
        return GPTNeoXConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=positions, hidden_dropout=dropout, attention_dropout=dropout, **common,
        )  # fmt: skip
    return GPT2Config(
        n_embd=32, n_layer=2, n_head=4, n_positions=positions, resid_pdrop=dropout, embd_pdrop=dropout,
        attn_pdrop=dropout, **common,
    )  # fmt: skip


def network_of(architecture: str, seed: int = 0, **shape: Any) -> PreTrainedModel:
    """A random model in fp32, in evaluation mode."""
    torch.manual_seed(seed)
    network: PreTrainedModel = AutoModelForCausalLM.from_config(config_of(architecture, **shape))
    network.config.architectures = [type(network).__name__]
    network.eval()
    return network


def write_tokenizer(folder: Path, vocab_size: int = 320) -> None:
    """A byte-level BPE in transformers' layout, with control tokens and a chat template."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=CONTROLS, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([WORDS, WORDS], trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    stored = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": CONTROLS[0], "pad_token": CONTROLS[3]}
    (folder / "tokenizer_config.json").write_text(json.dumps(stored))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)


def write_model(folder: Path, architecture: str, **shape: Any) -> Path:
    """A whole model folder: random weights, config, tokenizer."""
    network_of(architecture, **shape).save_pretrained(str(folder))
    write_tokenizer(folder)
    return folder


def write_rows(path: Path, count: int, seed: int = 0) -> Path:
    """A JSONL file of short instruction rows of uneven length."""
    generator = torch.Generator().manual_seed(seed)
    words = WORDS.split()
    path.parent.mkdir(parents=True, exist_ok=True)

    def text(most: int) -> str:
        size = int(torch.randint(1, most, (1,), generator=generator))
        picks = torch.randint(0, len(words), (size,), generator=generator)
        return " ".join(words[pick] for pick in picks.tolist())

    with open(path, "w", encoding="utf-8") as handle:
        for _ in range(count):
            row = {"instruction": text(6), "context": text(9), "response": text(7)}
            handle.write(json.dumps(row) + "\n")
    return path
