"""Random models of the real Hugging Face classes, scaled down, with a small tokenizer: what the proofs run on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel

# name -> what AutoConfig.for_model takes, beside the common facts: the real class, scaled down, nothing else changed.
_LLAMA = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip
_NEO = {"hidden_size": 32, "num_layers": 2, "attention_types": [[["global", "local"], 1]], "num_heads": 4}
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", **_LLAMA},
    "gpt_neox": {
        "model_type": "gpt_neox", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4,
    },
    "gpt2": {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4},
    "mistral": {"model_type": "mistral", **_LLAMA, "sliding_window": 16},
    "mixtral": {"model_type": "mixtral", **_LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2},
    "gemma": {"model_type": "gemma", **_LLAMA, "head_dim": 8},
    "gemma2": {"model_type": "gemma2", **_LLAMA, "head_dim": 8, "sliding_window": 16, "query_pre_attn_scalar": 8},
    "gemma3": {
        "model_type": "gemma3_text", **_LLAMA, "head_dim": 8, "sliding_window": 16, "query_pre_attn_scalar": 8,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "qwen2": {"model_type": "qwen2", **_LLAMA},
    "qwen3": {"model_type": "qwen3", **_LLAMA, "head_dim": 8},
    "phi": {"model_type": "phi", **_LLAMA, "num_key_value_heads": 4, "partial_rotary_factor": 0.5},
    "phi3": {"model_type": "phi3", **_LLAMA},
    "falcon_7b": {
        "model_type": "falcon", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "multi_query": True, "parallel_attn": True, "new_decoder_architecture": False, "bias": False, "alibi": False,
    },
    "falcon_40b": {
        "model_type": "falcon", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_kv_heads": 2,
        "new_decoder_architecture": True, "parallel_attn": True, "bias": False, "alibi": False,
    },
    "bloom": {"model_type": "bloom", "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "gptj": {"model_type": "gptj", "n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4},
    "gpt_neo": {"model_type": "gpt_neo", **_NEO, "window_size": 16},
    "mpt": {"model_type": "mpt", "d_model": 32, "n_layers": 2, "n_heads": 4, "expansion_ratio": 2},
    "t5": {  # FLAN-T5's form of it: gated, with a head of its own
        "model_type": "t5", "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4,
        "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "initializer_factor": 0.7,
        "relative_attention_num_buckets": 8, "relative_attention_max_distance": 20,
    },
}  # fmt: skip
ALL = tuple(SHAPES)
# Further classes of the catalogue, which the matrix does not cross with every method.
OTHERS: dict[str, dict[str, Any]] = {
    "smollm3": {"model_type": "smollm3", **_LLAMA, "no_rope_layer_interval": 2},
    "apertus": {"model_type": "apertus", **_LLAMA},
    "lfm2": {"model_type": "lfm2", **_LLAMA, "full_attn_idxs": [1], "block_multiple_of": 8},
    "olmo2": {"model_type": "olmo2", **_LLAMA},
    "olmo3": {
        "model_type": "olmo3", **_LLAMA, "sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"],
    },
    "granitemoehybrid": {
        "model_type": "granitemoehybrid", **_LLAMA, "shared_intermediate_size": 48, "num_local_experts": 0,
        "num_experts_per_tok": 0, "layer_types": ["attention", "attention"], "position_embedding_type": "rope",
        "embedding_multiplier": 2, "logits_scaling": 2, "residual_multiplier": 0.5, "attention_multiplier": 0.25,
        "mamba_n_heads": 4,
    },
}  # fmt: skip
ARCHITECTURES = ("llama", "gpt_neox", "gpt2")  # three of different build, for what does not depend on the architecture
# Where each class keeps the positions it was built for, and its dropouts.
_POSITIONS = {"gpt2": "n_positions", "gptj": "n_positions", "mpt": "max_seq_len", "t5": "", "bloom": ""}
_DROPOUTS = {
    "gpt_neox": ("hidden_dropout", "attention_dropout"), "gpt2": ("resid_pdrop", "embd_pdrop", "attn_pdrop"),
    "gptj": ("resid_pdrop", "embd_pdrop", "attn_pdrop"), "phi": ("resid_pdrop", "embd_pdrop", "attention_dropout"),
    "gpt_neo": ("resid_dropout", "embed_dropout", "attention_dropout"),
    "falcon": ("hidden_dropout", "attention_dropout"), "bloom": ("hidden_dropout", "attention_dropout"),
    "mpt": ("resid_pdrop", "emb_pdrop"), "t5": ("dropout_rate",),
}  # fmt: skip
CONTROLS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WORDS = "the a cat dog sat on mat red blue green one two three question answer response review good bad ### : + = 1 2"


def config_of(architecture: str, vocab_size: int = 320, positions: int = 256, dropout: float = 0.0) -> Any:
    """A small config of one of SHAPES; initial weights are large enough for losses to differ visibly."""
    shape = dict((SHAPES | OTHERS)[architecture])
    model_type = shape.pop("model_type")
    facts: dict[str, Any] = {"vocab_size": vocab_size, "eos_token_id": 0, "bos_token_id": None, "pad_token_id": 3}
    if name := _POSITIONS.get(model_type, "max_position_embeddings"):
        facts[name] = positions
    facts |= dict.fromkeys(_DROPOUTS.get(model_type, ("attention_dropout",)), dropout)
    facts |= {"decoder_start_token_id": 3} if model_type == "t5" else {"initializer_range": 0.1}
    return AutoConfig.for_model(model_type, **facts, **shape)


def network_of(architecture: str, seed: int = 0, **shape: Any) -> PreTrainedModel:
    """A random model in fp32, in evaluation mode."""
    torch.manual_seed(seed)
    config = config_of(architecture, **shape)
    family: Any = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    network: PreTrainedModel = family.from_config(config)
    network.config.architectures = [type(network).__name__]
    if config.is_encoder_decoder:  # transformers 5 ties the head of a new T5; FLAN-T5 has one of its own
        network.set_output_embeddings(torch.nn.Linear(config.d_model, config.vocab_size, bias=False))
    network.eval()
    return network


def write_tokenizer(folder: Path, vocab_size: int = 320, closing: bool = False) -> None:
    """A byte-level BPE in transformers' layout, with control tokens and a chat template.

    `closing`: it ends each text with the end-of-text token by itself, as T5's does, and knows no conversations.
    """
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=CONTROLS, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([WORDS, WORDS], trainer)
    if closing:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"$A {CONTROLS[0]}", special_tokens=[(CONTROLS[0], 0)]
        )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    stored = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": CONTROLS[0], "pad_token": CONTROLS[3]}
    (folder / "tokenizer_config.json").write_text(json.dumps(stored))
    if not closing:
        (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)


def write_model(folder: Path, architecture: str, **shape: Any) -> Path:
    """A whole model folder: random weights, config, tokenizer."""
    network = network_of(architecture, **shape)
    network.save_pretrained(str(folder))
    write_tokenizer(folder, closing=network.config.is_encoder_decoder)
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
