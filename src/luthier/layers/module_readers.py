"""Read the modules that several model families share, as tensors and numbers: linear layers with or without LoRA, norms
and activations.

A module is recognized by its type or by its output on a probe input. Unusual ones (quantized or sharded weights, DoRA,
stacked adapters) raise UnsupportedModuleError. fused_models.py reads whole models.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from peft.tuners.lora import Linear as AdaptedLinear
from torch import Tensor, nn

from luthier.layers.layer_norm import LayerNorm
from luthier.layers.linear import Linear, LoraMatrices
from luthier.layers.rms_norm import RmsNorm, rms_norm
from luthier.layers.swiglu import Activation, match_activation

T = TypeVar("T")


class UnsupportedModuleError(Exception):
    """A model has a module that the fused layers do not support; the message names it."""


def require(holds: bool, part: str) -> None:
    """Raise UnsupportedModuleError unless `holds`."""
    if not holds:
        raise UnsupportedModuleError(part)


def child_names(module: nn.Module) -> set[str]:
    """The names of a module's children."""
    return {name for name, _ in module.named_children()}


class ModuleReaders:
    """Reads norms and activations of one model, probing each module type once."""

    def __init__(self) -> None:
        self._activations: dict[type, Activation | None] = {}
        self._norms: dict[type, tuple[str, float] | None] = {}

    def activation(self, module: nn.Module) -> Activation:
        """The fused activation that a module computes."""
        match = _cached_match(self._activations, module, match_activation)
        if match is None:
            raise UnsupportedModuleError(f"the activation {type(module).__name__}")
        return match

    def norm(self, module: Any) -> RmsNorm:
        """An RMS norm."""
        match = _cached_match(self._norms, module, _match_rms_norm)
        if match is None or type(module.weight) is not nn.Parameter:
            raise UnsupportedModuleError(f"the norm {type(module).__name__}")
        epsilon, offset = match
        return RmsNorm(module.weight, float(getattr(module, epsilon)), offset)


def _cached_match(cache: dict[type, T | None], module: nn.Module, match: Callable[[Any], T | None]) -> T | None:
    module_type = type(module)
    if module_type not in cache:
        cache[module_type] = match(module)
    return cache[module_type]


@torch.no_grad()
def _match_rms_norm(module: Any) -> tuple[str, float] | None:
    """The name of an RMS norm's epsilon attribute, and its offset; None for another norm."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor):
        return None
    x_1D = torch.linspace(0.5, 2.0, len(weight), device=weight.device)[None]
    expected = module(x_1D)
    for epsilon in ("variance_epsilon", "eps"):
        for offset in (0.0, 1.0):
            if hasattr(module, epsilon):
                actual = rms_norm(x_1D, RmsNorm(weight, float(getattr(module, epsilon)), offset), torch.float32)
                if torch.allclose(actual, expected.float(), rtol=1e-5, atol=1e-5):
                    return epsilon, offset
    return None


def read_layer_norm(module: Any) -> LayerNorm:
    """torch's layer norm over the hidden size, with weight and bias."""
    known = type(module) is nn.LayerNorm and len(module.normalized_shape) == 1
    require(known and type(module.weight) is type(module.bias) is nn.Parameter, f"the norm {type(module).__name__}")
    return LayerNorm(module.weight, module.bias, float(module.eps))


def read_linear(module: Any) -> Linear:
    """A linear layer, with its LoRA adapter if it has one."""
    adapter = None
    if type(module) is AdaptedLinear:
        adapter = _read_adapter(module)
        module = module.base_layer
    require(type(module) is nn.Linear and type(module.weight) is nn.Parameter, f"a layer of {type(module).__name__}")
    return Linear(module.weight, module.bias, adapter)


def _read_adapter(module: Any) -> LoraMatrices | None:
    """PEFT's standard LoRA; None if disabled."""
    if module.disable_adapters:
        return None
    require(not module.merged and len(module.active_adapters) == 1, "adapters merged or in a row")
    (name,) = module.active_adapters
    require(name in module.lora_A and name not in module.lora_variant, "an adapter that is not plain LoRA")
    a, b, dropout = module.lora_A[name], module.lora_B[name], module.lora_dropout[name]
    require(type(a.weight) is type(b.weight) is nn.Parameter, "an adapter of another type")
    require(a.bias is None and b.bias is None and not module.fan_in_fan_out, "an adapter with biases or turned weights")
    require(type(dropout) in (nn.Dropout, nn.Identity), "another dropout of an adapter")
    probability = float(dropout.p) if isinstance(dropout, nn.Dropout) and dropout.training else 0.0
    require(probability < 1.0, "dropout of everything")
    return LoraMatrices(a.weight, b.weight, float(module.scaling[name]), probability)


def is_inactive_dropout(module: Any) -> bool:
    """Whether a module is a dropout that drops nothing in its present state."""
    return type(module) is nn.Dropout and not (module.training and module.p)
