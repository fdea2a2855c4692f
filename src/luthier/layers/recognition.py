"""Which of transformers' models the engine's own layers compute, told by what a model is made of.

A model is known when all its parts are those of the Llama family (Llama, Mistral, Qwen 2 and 3, Gemma): their names,
the types of its linear layers and of the adapters round them, what its norms and activations give when tried, and that
nothing is hooked to any of them. Whatever else there is (quantized or sharded weights, DoRA, a mixture's experts,
somebody's hook) makes the model unknown, and the plain modules compute it. Only packed rows are asked for, which an
architecture's name alone allows (attention.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora import Linear as AdaptedLinear
from torch import Tensor, nn

from luthier.layers.linear import Linear, LowRank
from luthier.layers.norm import Norm, rms_norm
from luthier.layers.swiglu import Activation, activation_of

STACK = {"embed_tokens", "layers", "norm", "rotary_emb"}
LAYER = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
HEAD_NORMS = {"q_norm", "k_norm"}
MLP = {"gate_proj", "up_proj", "down_proj", "act_fn"}
DEVICES = ("cpu", "cuda")
DTYPES = (torch.float32, torch.bfloat16)
CALLED = ("embed_tokens", "rotary_emb")  # as modules: what is hooked to them takes part
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class UnknownPart(Exception):
    """A part of a model that the engine's own layers do not compute; the message says which."""


@dataclass(frozen=True, slots=True)
class FastLayer:
    """One decoder layer's weights and numbers. `window` is None where a token sees all of its row before it."""

    norm: Norm
    qkv: tuple[Linear, Linear, Linear]
    head_norms: tuple[Norm, Norm] | None
    o: Linear
    mlp_norm: Norm
    gate_up: tuple[Linear, Linear]
    down: Linear
    activation: Activation
    head_size: int
    scale: float
    window: int | None
    recomputed: bool


@dataclass(frozen=True, slots=True)
class FastStack:
    """All layers of a model and the norm behind them; embedding and rotary angles are the model's own modules."""

    embed: nn.Module
    rotary: nn.Module
    layers: tuple[FastLayer, ...]
    norm: Norm


def fast_layers(plain: Any, dtype: torch.dtype) -> FastStack:
    """A causal model's layers as tensors and numbers, to be computed in `dtype` as the model stands (training or not,
    adapter on or off). UnknownPart when any of it is not known.
    """
    _check(dtype in DTYPES, f"computing in {dtype}")
    stack = plain.base_model
    _check(_parts(stack) == STACK, "the parts of the model")
    for name, module in stack.named_modules():
        if name not in CALLED:
            _check(not any(getattr(module, hooks) for hooks in HOOKS), f"a hook at {name or 'the model'}")
    weight = getattr(stack.embed_tokens, "weight", None)
    _check(type(weight) is nn.Parameter and weight.device.type in DEVICES, "the embedding, or its device")
    reader = _Reader()
    layers = tuple(reader.layer(layer) for layer in stack.layers[: plain.config.num_hidden_layers])
    return FastStack(stack.embed_tokens, stack.rotary_emb, layers, reader.norm(stack.norm))


class _Reader:
    """Reads the layers of one model; what must be tried is tried once for each type of module."""

    def __init__(self) -> None:
        self.activations: dict[type, Activation | None] = {}
        self.norms: dict[type, tuple[str, float] | None] = {}

    def layer(self, layer: Any) -> FastLayer:
        _check(_parts(layer) == LAYER, "the parts of a layer")
        attention, mlp = layer.self_attn, layer.mlp
        parts = _parts(attention)
        _check(parts in (ATTENTION, ATTENTION | HEAD_NORMS), "the parts of the attention")
        _check(_parts(mlp) == MLP, "the parts of the MLP")
        _check(attention.is_causal, "attention that looks ahead")
        _check(not (attention.training and attention.attention_dropout), "dropout in the attention")
        return FastLayer(
            norm=self.norm(layer.input_layernorm),
            qkv=(_linear(attention.q_proj), _linear(attention.k_proj), _linear(attention.v_proj)),
            head_norms=(self.norm(attention.q_norm), self.norm(attention.k_norm)) if parts > ATTENTION else None,
            o=_linear(attention.o_proj),
            mlp_norm=self.norm(layer.post_attention_layernorm),
            gate_up=(_linear(mlp.gate_proj), _linear(mlp.up_proj)),
            down=_linear(mlp.down_proj),
            activation=self.activation(mlp.act_fn),
            head_size=int(attention.head_dim),
            scale=float(attention.scaling),
            # Qwen says it layer by layer, Mistral for the whole model.
            window=getattr(attention, "sliding_window", getattr(attention.config, "sliding_window", None)),
            recomputed=bool(layer.gradient_checkpointing and layer.training),
        )

    def activation(self, module: nn.Module) -> Activation:
        kind = type(module)
        if kind not in self.activations:
            self.activations[kind] = activation_of(module)
        found = self.activations[kind]
        if found is None:
            raise UnknownPart(f"the activation {kind.__name__}")
        return found

    def norm(self, module: Any) -> Norm:
        kind = type(module)
        if kind not in self.norms:
            self.norms[kind] = _tried_norm(module)
        found = self.norms[kind]
        if found is None or type(module.weight) is not nn.Parameter:
            raise UnknownPart(f"the norm {kind.__name__}")
        epsilon, offset = found
        return Norm(module.weight, float(getattr(module, epsilon)), offset)


@torch.no_grad()
def _tried_norm(module: Any) -> tuple[str, float] | None:
    """Where an RMS norm keeps its epsilon, and its offset; None for another norm."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor):
        return None
    x_1D = torch.linspace(0.5, 2.0, len(weight), device=weight.device)[None]
    given = module(x_1D)
    for epsilon in ("variance_epsilon", "eps"):
        for offset in (0.0, 1.0):
            if hasattr(module, epsilon):
                own = rms_norm(x_1D, Norm(weight, float(getattr(module, epsilon)), offset), torch.float32)
                if torch.allclose(own, given.float(), rtol=1e-5, atol=1e-5):
                    return epsilon, offset
    return None


def _linear(module: Any) -> Linear:
    adapter = None
    if type(module) is AdaptedLinear:
        adapter = _adapter(module)
        module = module.base_layer
    _check(type(module) is nn.Linear and type(module.weight) is nn.Parameter, f"a layer of {type(module).__name__}")
    return Linear(module.weight, module.bias, adapter)


def _adapter(module: Any) -> LowRank | None:
    """PEFT's plain LoRA; None where it is switched off."""
    if module.disable_adapters:
        return None
    _check(not module.merged and len(module.active_adapters) == 1, "adapters merged or in a row")
    (name,) = module.active_adapters
    _check(name in module.lora_A and name not in module.lora_variant, "an adapter that is not plain LoRA")
    a, b, dropout = module.lora_A[name], module.lora_B[name], module.lora_dropout[name]
    _check(type(a.weight) is type(b.weight) is nn.Parameter, "an adapter of another type")
    _check(a.bias is None and b.bias is None and not module.fan_in_fan_out, "an adapter with biases or turned weights")
    _check(type(dropout) in (nn.Dropout, nn.Identity), "another dropout of an adapter")
    share = float(dropout.p) if isinstance(dropout, nn.Dropout) and dropout.training else 0.0
    _check(share < 1.0, "dropout of everything")
    return LowRank(a.weight, b.weight, float(module.scaling[name]), share)


def _parts(module: nn.Module) -> set[str]:
    return {name for name, _ in module.named_children()}


def _check(holds: bool, part: str) -> None:
    if not holds:
        raise UnknownPart(part)
