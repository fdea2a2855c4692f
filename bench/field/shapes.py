"""Base models of real shapes with random weights, and a byte-level BPE made of the rows: nothing is fetched.

Speed and memory depend on a model's shape, not on what it has learned. Weights are stored in bf16, as those that people
tune are.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

PAD, END = "<|pad|>", "<|endoftext|>"
FORMAT = 3  # of a stored shape; raise it whenever the same name would give other files


@dataclass(frozen=True, slots=True)
class Shape:
    """`config` as in config.json. `rows`: rows of a step; `tokens`: what a peer packs them into."""

    name: str
    note: str
    config: dict[str, Any]
    rows: int = 8
    tokens: int = 2048
    gpu: bool = False

    @property
    def pairs(self) -> bool:
        """Whether an encoder reads the prompt."""
        return bool(self.config.get("is_encoder_decoder"))


_LLAMA = {"model_type": "llama", "rms_norm_eps": 1e-5, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
SHAPES = {
    shape.name: shape
    for shape in (
        Shape("tiny", "a Llama of 2 layers, for the tests", _LLAMA | {
            "vocab_size": 2048, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2048,
            "tie_word_embeddings": True,
        }),
        Shape("135m", "SmolLM-135M's shape", _LLAMA | {
            "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
            "num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 2048,
            "tie_word_embeddings": True, "rope_theta": 10000.0,
        }),
        Shape("0.5b", "Qwen2-0.5B's shape, 151,936 tokens of vocabulary", {
            "model_type": "qwen2", "vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864,
            "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
            "max_position_embeddings": 32768, "tie_word_embeddings": True, "rms_norm_eps": 1e-6,
            "rope_theta": 1000000.0, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1,
        }),
        Shape("t5-small", "FLAN-T5-small's shape", {
            "model_type": "t5", "vocab_size": 32128, "d_model": 512, "d_kv": 64, "d_ff": 1024, "num_layers": 8,
            "num_decoder_layers": 8, "num_heads": 6, "feed_forward_proj": "gated-gelu", "is_encoder_decoder": True,
            "tie_word_embeddings": False, "eos_token_id": 0, "pad_token_id": 1, "decoder_start_token_id": 1,
        }),
        Shape("8b", "Llama-3.1-8B's shape; for a GPU", _LLAMA | {
            "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 8192,
            "tie_word_embeddings": False, "rope_theta": 500000.0,
        }, rows=40, tokens=8192, gpu=True),
    )
}  # fmt: skip


def first_causal(names: Sequence[str]) -> Shape:
    """The first of `names` that reads and writes in one stack; 135m where there is none."""
    return next((SHAPES[name] for name in names if not SHAPES[name].pairs), SHAPES["135m"])


def build(shape: Shape, rows: list[dict[str, str]], cache: Path, lively: bool = False) -> Path:
    """The folder of a shape's files in Hugging Face layout, built once.

    `lively`: queries and keys are larger, so that attention picks few tokens. Without that, what random weights
    write is one token over and over, which no stop token ends and in which no error shows.
    """
    folder = cache / f"{shape.name}{'-lively' if lively else ''}-{FORMAT}"
    if (folder / "built").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    _tokenizer(shape, rows).save(str(folder / "tokenizer.json"))
    described = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "pad_token": PAD,
                 "model_max_length": 2048}  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(described), "utf-8")
    fields = dict(shape.config)
    config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    family: Any = AutoModelForSeq2SeqLM if shape.pairs else AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = family.from_config(config, dtype=torch.bfloat16)
    if lively:
        _sharpen(network)
    network.save_pretrained(folder)
    (folder / "built").touch()
    return folder


@torch.no_grad()
def _sharpen(network: nn.Module) -> None:
    for name, parameter in network.named_parameters():
        if "q_proj.weight" in name or "k_proj.weight" in name:
            parameter.mul_(4)  # more than 5, and rounding in the last bit of fp32 grows into other tokens


def _tokenizer(shape: Shape, rows: list[dict[str, str]]) -> Tokenizer:
    """A byte-level BPE made of the rows; T5's ends every text with its end token, as its own does."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=min(shape.config["vocab_size"], 49152), special_tokens=[END, PAD], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    made.train_from_iterator((" ".join(row.values()) for row in rows), trainer)
    if shape.pairs:
        made.post_processor = processors.TemplateProcessing(single=f"$A {END}", special_tokens=[(END, 0)])
    return made


def parameters(folder: Path) -> tuple[int, int]:
    """Parameters outside the embeddings and the head, and those of the head (vocabulary times width)."""
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    family: Any = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    with torch.device("meta"):
        network = family.from_config(config)
    head = network.get_output_embeddings().weight.numel()
    tables = {id(layer.weight): layer.weight.numel() for layer in
              (network.get_input_embeddings(), network.get_output_embeddings())}  # fmt: skip
    return sum(parameter.numel() for parameter in network.parameters()) - sum(tables.values()), head
