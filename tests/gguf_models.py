"""Tiny models as GGUF files, written from their weights as llama.cpp's converter does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf_files import write_gguf
from tokenizers import pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
TOKENS = ["<|bos|>", "<|eos|>", "<|pad|>", *BYTES, "he", "ll", "hell", "Ġw"]
MERGES = ["h e", "l l", "he ll", "Ġ w"]
TEMPLATE = "{% for m in messages %}<|bos|>{{ m['content'] }}<|eos|>{% endfor %}"
VOCABULARY: dict[str, Any] = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.merges": MERGES,
    "tokenizer.ggml.token_type": [3, 3, 3] + [1] * (len(TOKENS) - 3),
    "tokenizer.ggml.bos_token_id": 0,
    "tokenizer.ggml.eos_token_id": 1,
    "tokenizer.ggml.padding_token_id": 2,
    "tokenizer.chat_template": TEMPLATE,
}


def tiny_llama(**options: Any) -> Any:
    """A Llama of 2 layers with random weights, biases and norms."""
    settings: dict[str, Any] = {
        "vocab_size": len(TOKENS), "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "tie_word_embeddings": True,
        "rms_norm_eps": 1e-5, "bos_token_id": 0, "eos_token_id": 1,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model: Any = LlamaForCausalLM(LlamaConfig(**settings | options)).float().eval()
        for parameter in model.parameters():
            parameter.data.add_(0.2 * torch.randn_like(parameter))
    return model


_NAMES = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def llama_tensors(model: Any, dtype: Any = np.float32) -> dict[str, np.ndarray[Any, Any]]:
    """The weights under llama.cpp's names, with its order of rotary dimensions; matrices in `dtype`."""
    tensors: dict[str, np.ndarray[Any, Any]] = {}
    for name, value in model.state_dict().items():
        values = value.numpy()
        heads = {"q_proj": model.config.num_attention_heads, "k_proj": model.config.num_key_value_heads}
        for projection, count in heads.items():
            if f".{projection}." in name:  # llama.cpp pairs neighbouring dimensions, transformers the two halves
                halves = values.reshape(count, 2, len(values) // count // 2, *values.shape[1:])
                values = halves.swapaxes(1, 2).reshape(values.shape)
        stored = {
            "model.embed_tokens.weight": "token_embd.weight",
            "model.norm.weight": "output_norm.weight",
            "lm_head.weight": "output.weight",
        }.get(name)
        if stored is None:
            _, _, layer, part = name.split(".", 3)
            stored = f"blk.{layer}.{_NAMES[part.rpartition('.')[0]]}.{part.rpartition('.')[2]}"
        if stored == "output.weight" and model.config.tie_word_embeddings:
            continue
        tensors[stored] = np.ascontiguousarray(values, dtype if values.ndim > 1 else np.float32)
    return tensors


def llama_metadata(model: Any) -> dict[str, Any]:
    """What llama.cpp's converter states of the model, without the vocabulary."""
    config = model.config
    return {
        "general.architecture": "llama",
        "general.name": "Tiny Test",
        "general.license": "apache-2.0",
        "llama.block_count": config.num_hidden_layers,
        "llama.context_length": config.max_position_embeddings,
        "llama.embedding_length": config.hidden_size,
        "llama.feed_forward_length": config.intermediate_size,
        "llama.attention.head_count": config.num_attention_heads,
        "llama.attention.head_count_kv": config.num_key_value_heads,
        "llama.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "llama.rope.freq_base": float(config.rope_parameters["rope_theta"]),
        "llama.rope.dimension_count": config.hidden_size // config.num_attention_heads,
        "llama.vocab_size": config.vocab_size,
    }


def write_llama(path: Path, model: Any, extra: dict[str, Any] | None = None) -> Path:
    """Write the model and its vocabulary as a GGUF file; `extra` metadata goes last."""
    return write_gguf(path, llama_metadata(model) | VOCABULARY | (extra or {}), llama_tensors(model))
