"""Which transformers models Luthier's fused layers support, decided by a model's modules, not by its name.

A model is known when all its parts are those of one family, the Llama family (Llama, Mistral, Qwen 2 and 3, Gemma) or
the GPT-NeoX family (Pythia, Dolly, RedPajama): their names, the types of its linear layers and of the adapters round
them, what its norms and activations are or give when tried, and that nothing is hooked to any of them. Whatever else
there is (quantized or sharded weights, DoRA, a mixture's experts, somebody's hook) makes the model unknown, and the
plain modules compute it. Only packed rows are asked for, which an architecture's name alone allows (attention.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from luthier.layers.decoder_layer import LlamaLayer
from luthier.layers.fused_stack import FusedStack
from luthier.layers.module_readers import (
    ModuleReaders,
    UnsupportedModuleError,
    child_names,
    is_inactive_dropout,
    read_layer_norm,
    read_linear,
    require,
)  # fmt: skip
from luthier.layers.neox_layer import NeoxLayer

DEVICES = ("cpu", "cuda")
DTYPES = (torch.float32, torch.bfloat16)
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
ROTARY = "rotary_emb"

LLAMA_LAYER = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
LLAMA_ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
LLAMA_HEAD_NORMS = {"q_norm", "k_norm"}
LLAMA_MLP = {"gate_proj", "up_proj", "down_proj", "act_fn"}

NEOX_DROPOUTS = ("post_attention_dropout", "post_mlp_dropout")
NEOX_LAYER = {"attention", "mlp", "input_layernorm", "post_attention_layernorm", *NEOX_DROPOUTS}
NEOX_ATTENTION = {"query_key_value", "dense"}
NEOX_MLP = {"dense_h_to_4h", "dense_4h_to_h", "act"}


def build_fused_stack(plain: Any, dtype: torch.dtype) -> FusedStack:
    """A causal model's layers as tensors and numbers, to be computed in `dtype` as the model stands (training or not,
    adapter on or off). UnsupportedModuleError when any of it is not known.
    """
    require(dtype in DTYPES, f"computing in {dtype}")
    stack = plain.base_model
    family = next((family for family in FAMILIES if family.parts == child_names(stack)), None)
    if family is None:
        raise UnsupportedModuleError("the parts of the model")
    for name, module in stack.named_modules():
        if name not in (family.embed, ROTARY):  # called as modules: what is hooked to them takes part
            require(not any(getattr(module, hooks) for hooks in HOOKS), f"a hook at {name or 'the model'}")
    embed = getattr(stack, family.embed)
    weight = getattr(embed, "weight", None)
    require(type(weight) is nn.Parameter and weight.device.type in DEVICES, "the embedding, or its device")
    return family.read(stack, embed, ModuleReaders())


def _llama(stack: Any, embed: nn.Module, tried: ModuleReaders) -> FusedStack:
    layers = stack.layers[: stack.config.num_hidden_layers]
    return FusedStack(
        embed, stack.rotary_emb, tuple(_llama_layer(layer, tried) for layer in layers), tried.norm(stack.norm)
    )


def _llama_layer(layer: Any, tried: ModuleReaders) -> LlamaLayer:
    require(child_names(layer) == LLAMA_LAYER, "the parts of a layer")
    attention, mlp = layer.self_attn, layer.mlp
    parts = child_names(attention)
    require(parts in (LLAMA_ATTENTION, LLAMA_ATTENTION | LLAMA_HEAD_NORMS), "the parts of the attention")
    require(child_names(mlp) == LLAMA_MLP, "the parts of the MLP")
    _check_attention(attention)
    return LlamaLayer(
        norm=tried.norm(layer.input_layernorm),
        qkv=(read_linear(attention.q_proj), read_linear(attention.k_proj), read_linear(attention.v_proj)),
        head_norms=(tried.norm(attention.q_norm), tried.norm(attention.k_norm)) if parts > LLAMA_ATTENTION else None,
        o=read_linear(attention.o_proj),
        mlp_norm=tried.norm(layer.post_attention_layernorm),
        gate_up=(read_linear(mlp.gate_proj), read_linear(mlp.up_proj)),
        down=read_linear(mlp.down_proj),
        activation=tried.activation(mlp.act_fn),
        head_size=int(attention.head_dim),
        scale=float(attention.scaling),
        # Qwen says it layer by layer, Mistral for the whole model.
        window=getattr(attention, "sliding_window", getattr(attention.config, "sliding_window", None)),
        checkpointed=_recomputed(layer),
    )


def _neox(stack: Any, embed: nn.Module, tried: ModuleReaders) -> FusedStack:
    require(is_inactive_dropout(stack.emb_dropout), "dropout behind the embedding")
    layers = tuple(_neox_layer(layer, tried) for layer in stack.layers)
    return FusedStack(embed, stack.rotary_emb, layers, read_layer_norm(stack.final_layer_norm))


def _neox_layer(layer: Any, tried: ModuleReaders) -> NeoxLayer:
    require(child_names(layer) == NEOX_LAYER, "the parts of a layer")
    attention, mlp = layer.attention, layer.mlp
    require(child_names(attention) == NEOX_ATTENTION, "the parts of the attention")
    require(child_names(mlp) == NEOX_MLP, "the parts of the MLP")
    _check_attention(attention)
    require(all(is_inactive_dropout(getattr(layer, name)) for name in NEOX_DROPOUTS), "dropout behind attention or MLP")
    return NeoxLayer(
        norm=read_layer_norm(layer.input_layernorm), qkv=read_linear(attention.query_key_value),
        dense=read_linear(attention.dense), mlp_norm=read_layer_norm(layer.post_attention_layernorm),
        up=read_linear(mlp.dense_h_to_4h), down=read_linear(mlp.dense_4h_to_h), activation=tried.activation(mlp.act),
        head_size=int(attention.head_size), scale=float(attention.scaling),
        parallel=bool(layer.use_parallel_residual), checkpointed=_recomputed(layer),
    )  # fmt: skip


def _check_attention(attention: Any) -> None:
    require(attention.is_causal, "attention that looks ahead")
    require(not (attention.training and attention.attention_dropout), "dropout in the attention")


def _recomputed(layer: Any) -> bool:
    return bool(layer.gradient_checkpointing and layer.training)


@dataclass(frozen=True, slots=True)
class Family:
    """The names of a stack's parts, the embedding's among them, and what reads it."""

    parts: frozenset[str]
    embed: str
    read: Callable[[Any, nn.Module, ModuleReaders], FusedStack]


FAMILIES = (
    Family(frozenset({"embed_tokens", "layers", "norm", ROTARY}), "embed_tokens", _llama),
    Family(frozenset({"embed_in", "emb_dropout", "layers", "final_layer_norm", ROTARY}), "embed_in", _neox),
)
