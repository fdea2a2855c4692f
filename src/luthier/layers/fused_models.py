"""Build a fused stack from a transformers model; the model's modules, not its name, decide whether it is supported.

A model is supported when all its modules belong to one family, the Llama family (Llama, Mistral, Qwen 2 and 3, Gemma)
or the GPT-NeoX family (Pythia, Dolly, RedPajama). The module names, the types of linear layers and adapters, and the
types or outputs of norms and activations must match, and no module may have hooks. Anything else (quantized or sharded
weights, DoRA, experts, hooks) raises UnsupportedModuleError, and the caller runs the Hugging Face modules instead.
Fused stacks run packed rows only; attention.py lists the architectures that may be packed.
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


def build_fused_stack(hf_model: Any, dtype: torch.dtype) -> FusedStack:
    """A causal model's fused stack, to be computed in `dtype`, for its present state (training or evaluation, adapter
    on or off). UnsupportedModuleError when a module is not supported.
    """
    require(dtype in DTYPES, f"computing in {dtype}")
    stack = hf_model.base_model
    family = next((family for family in FAMILIES if family.parts == child_names(stack)), None)
    if family is None:
        raise UnsupportedModuleError("the parts of the model")
    for name, module in stack.named_modules():
        if name not in (family.embed, ROTARY):  # called as modules, so their hooks run
            require(not any(getattr(module, hooks) for hooks in HOOKS), f"a hook at {name or 'the model'}")
    embed = getattr(stack, family.embed)
    weight = getattr(embed, "weight", None)
    require(type(weight) is nn.Parameter and weight.device.type in DEVICES, "the embedding, or its device")
    return family.read(stack, embed, ModuleReaders())


def _read_llama(stack: Any, embed: nn.Module, readers: ModuleReaders) -> FusedStack:
    layers = stack.layers[: stack.config.num_hidden_layers]
    return FusedStack(
        embed, stack.rotary_emb, tuple(_read_llama_layer(layer, readers) for layer in layers), readers.norm(stack.norm)
    )


def _read_llama_layer(layer: Any, readers: ModuleReaders) -> LlamaLayer:
    require(child_names(layer) == LLAMA_LAYER, "the parts of a layer")
    attention, mlp, norm = layer.self_attn, layer.mlp, readers.norm
    parts = child_names(attention)
    require(parts in (LLAMA_ATTENTION, LLAMA_ATTENTION | LLAMA_HEAD_NORMS), "the parts of the attention")
    require(child_names(mlp) == LLAMA_MLP, "the parts of the MLP")
    _check_attention(attention)
    return LlamaLayer(
        norm=norm(layer.input_layernorm),
        qkv=(read_linear(attention.q_proj), read_linear(attention.k_proj), read_linear(attention.v_proj)),
        head_norms=(norm(attention.q_norm), norm(attention.k_norm)) if parts > LLAMA_ATTENTION else None,
        o=read_linear(attention.o_proj),
        mlp_norm=norm(layer.post_attention_layernorm),
        gate_up=(read_linear(mlp.gate_proj), read_linear(mlp.up_proj)),
        down=read_linear(mlp.down_proj),
        activation=readers.activation(mlp.act_fn),
        head_size=int(attention.head_dim),
        scale=float(attention.scaling),
        # Qwen sets it per layer, Mistral for the whole model.
        window=getattr(attention, "sliding_window", getattr(attention.config, "sliding_window", None)),
        checkpointed=_is_checkpointed(layer),
    )


def _read_neox(stack: Any, embed: nn.Module, readers: ModuleReaders) -> FusedStack:
    require(is_inactive_dropout(stack.emb_dropout), "dropout behind the embedding")
    layers = tuple(_read_neox_layer(layer, readers) for layer in stack.layers)
    return FusedStack(embed, stack.rotary_emb, layers, read_layer_norm(stack.final_layer_norm))


def _read_neox_layer(layer: Any, readers: ModuleReaders) -> NeoxLayer:
    require(child_names(layer) == NEOX_LAYER, "the parts of a layer")
    attention, mlp = layer.attention, layer.mlp
    require(child_names(attention) == NEOX_ATTENTION, "the parts of the attention")
    require(child_names(mlp) == NEOX_MLP, "the parts of the MLP")
    _check_attention(attention)
    require(all(is_inactive_dropout(getattr(layer, name)) for name in NEOX_DROPOUTS), "dropout behind attention or MLP")
    return NeoxLayer(
        norm=read_layer_norm(layer.input_layernorm), qkv=read_linear(attention.query_key_value),
        dense=read_linear(attention.dense), mlp_norm=read_layer_norm(layer.post_attention_layernorm),
        up=read_linear(mlp.dense_h_to_4h), down=read_linear(mlp.dense_4h_to_h), activation=readers.activation(mlp.act),
        head_size=int(attention.head_size), scale=float(attention.scaling),
        parallel=bool(layer.use_parallel_residual), checkpointed=_is_checkpointed(layer),
    )  # fmt: skip


def _check_attention(attention: Any) -> None:
    require(attention.is_causal, "attention that looks ahead")
    require(not (attention.training and attention.attention_dropout), "dropout in the attention")


def _is_checkpointed(layer: Any) -> bool:
    return bool(layer.gradient_checkpointing and layer.training)


@dataclass(frozen=True, slots=True)
class Family:
    """The names of a stack's child modules, which of them is the embedding, and the stack's reader."""

    parts: frozenset[str]
    embed: str
    read: Callable[[Any, nn.Module, ModuleReaders], FusedStack]


FAMILIES = (
    Family(frozenset({"embed_tokens", "layers", "norm", ROTARY}), "embed_tokens", _read_llama),
    Family(frozenset({"embed_in", "emb_dropout", "layers", "final_layer_norm", ROTARY}), "embed_in", _read_neox),
)
