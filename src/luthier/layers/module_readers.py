"""Parts that several families of transformers' models share, as tensors and numbers: linear layers with or without
LoRA, norms, activations.

A part is known by its type, or by what it gives when tried, and only where nothing about it is unusual (quantized or
sharded weights, DoRA, adapters in a row). Which parts a model has it does not know (fused_models.py).
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

Found = TypeVar("Found")


class UnsupportedModuleError(Exception):
    """A part of a model that Luthier's fused layers do not compute; the message says which."""


def require(holds: bool, part: str) -> None:
    """UnsupportedModuleError, unless it holds."""
    if not holds:
        raise UnsupportedModuleError(part)


def child_names(module: nn.Module) -> set[str]:
    """The names of a module's parts."""
    return {name for name, _ in module.named_children()}


class ModuleReaders:
    """Norms and activations of one model, which are tried once for each type of module."""

    def __init__(self) -> None:
        self._activations: dict[type, Activation | None] = {}
        self._norms: dict[type, tuple[str, float] | None] = {}

    def activation(self, module: nn.Module) -> Activation:
        """An activation as a known function."""
        found = _once(self._activations, module, match_activation)
        if found is None:
            raise UnsupportedModuleError(f"the activation {type(module).__name__}")
        return found

    def norm(self, module: Any) -> RmsNorm:
        """An RMS norm."""
        found = _once(self._norms, module, _tried_norm)
        if found is None or type(module.weight) is not nn.Parameter:
            raise UnsupportedModuleError(f"the norm {type(module).__name__}")
        epsilon, offset = found
        return RmsNorm(module.weight, float(getattr(module, epsilon)), offset)


def _once(known: dict[type, Found | None], module: nn.Module, trial: Callable[[Any], Found | None]) -> Found | None:
    kind = type(module)
    if kind not in known:
        known[kind] = trial(module)
    return known[kind]


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
                own = rms_norm(x_1D, RmsNorm(weight, float(getattr(module, epsilon)), offset), torch.float32)
                if torch.allclose(own, given.float(), rtol=1e-5, atol=1e-5):
                    return epsilon, offset
    return None


def read_layer_norm(module: Any) -> LayerNorm:
    """torch's layer norm over the hidden size, with weight and bias."""
    known = type(module) is nn.LayerNorm and len(module.normalized_shape) == 1
    require(known and type(module.weight) is type(module.bias) is nn.Parameter, f"the norm {type(module).__name__}")
    return LayerNorm(module.weight, module.bias, float(module.eps))


def read_linear(module: Any) -> Linear:
    """A linear layer, with the adapter round it if there is one."""
    adapter = None
    if type(module) is AdaptedLinear:
        adapter = _adapter(module)
        module = module.base_layer
    require(type(module) is nn.Linear and type(module.weight) is nn.Parameter, f"a layer of {type(module).__name__}")
    return Linear(module.weight, module.bias, adapter)


def _adapter(module: Any) -> LoraMatrices | None:
    """PEFT's plain LoRA; None where it is switched off."""
    if module.disable_adapters:
        return None
    require(not module.merged and len(module.active_adapters) == 1, "adapters merged or in a row")
    (name,) = module.active_adapters
    require(name in module.lora_A and name not in module.lora_variant, "an adapter that is not plain LoRA")
    a, b, dropout = module.lora_A[name], module.lora_B[name], module.lora_dropout[name]
    require(type(a.weight) is type(b.weight) is nn.Parameter, "an adapter of another type")
    require(a.bias is None and b.bias is None and not module.fan_in_fan_out, "an adapter with biases or turned weights")
    require(type(dropout) in (nn.Dropout, nn.Identity), "another dropout of an adapter")
    share = float(dropout.p) if isinstance(dropout, nn.Dropout) and dropout.training else 0.0
    require(share < 1.0, "dropout of everything")
    return LoraMatrices(a.weight, b.weight, float(module.scaling[name]), share)


def is_inactive_dropout(module: Any) -> bool:
    """Whether a module is a dropout that lets everything through in its present state."""
    return type(module) is nn.Dropout and not (module.training and module.p)
