"""Linear layers that read the same input, with or without LoRA adapters, and their backward pass.

    y = x W' + bias + scale * (dropped x) A' B'          W in its own type, multiplied in the compute type

Only what training changes gets a gradient: under an adapter no weight gradient of W is ever computed. Kept for the
backward pass are the small products x A' alone; the input is the caller's to keep or to compute again. Dropout masks
are drawn from a seed, and drawn again in the backward pass. The reference is nn.Linear, and PEFT's layer round it
(tests/layers/test_linear.py).

Shapes: T tokens, I inputs, O outputs, R rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from luthier.layers.dropout import DropoutMasks, draw_seed, dropped_levels, keep_probability
from luthier.layers.product import matmul_nt


@dataclass(frozen=True, slots=True)
class LoraMatrices:
    """A LoRA adapter's two matrices. `dropout` is 0 while the model does not train."""

    a_RI: Tensor
    b_OR: Tensor
    scale: float
    dropout: float = 0.0


@dataclass(frozen=True, slots=True)
class Linear:
    """One linear layer."""

    weight_OI: Tensor
    bias_O: Tensor | None = None
    adapter: LoraMatrices | None = None

    @property
    def parameters(self) -> tuple[Tensor | None, ...]:
        """Weight, bias, A and B: the order in which gradients come back."""
        adapter = self.adapter
        return self.weight_OI, self.bias_O, *((adapter.a_RI, adapter.b_OR) if adapter else (None, None))

    @property
    def is_trainable(self) -> bool:
        return any(parameter is not None and parameter.requires_grad for parameter in self.parameters)


@dataclass(frozen=True, slots=True)
class SavedForBackward:
    """What a forward pass leaves for the backward pass: x A' of each layer (None without adapter), and the seed."""

    lora_inner_TR: tuple[Tensor | None, ...]
    seed: int


def seed_of(layers: Sequence[Linear]) -> int:
    """A seed for the layers' masks; 0, and nothing drawn, where nothing is dropped."""
    return draw_seed() if any(map(_dropout, layers)) else 0


def linear(
    x_TI: Tensor, layers: Sequence[Linear], residual_TO: Tensor | None = None
) -> tuple[list[Tensor], SavedForBackward]:
    """The outputs of the layers, without autograd. With `residual_TO`, each is added to it and has its type, which may
    be wider than the input's.
    """
    seed, dtype = seed_of(layers), x_TI.dtype
    outputs: list[Tensor] = []
    lows: list[Tensor | None] = []
    for layer, mask_TI, keep in zip(layers, _masks(x_TI, layers, seed), _kept_shares(layers), strict=True):
        low_TR = None
        if layer.adapter:
            low_TR = matmul_nt(x_TI if mask_TI is None else x_TI * mask_TI, layer.adapter.a_RI.to(dtype))
            # The small one first: added to a rounded result, it would be rounded away.
            small_TO = matmul_nt(low_TR, _scaled_b(layer.adapter, keep, dtype))
            y_TO = matmul_nt(x_TI, layer.weight_OI.to(dtype), small_TO, inplace=True)
        elif residual_TO is not None and residual_TO.dtype is dtype:
            y_TO = matmul_nt(x_TI, layer.weight_OI.to(dtype), residual_TO)
        else:
            y_TO = matmul_nt(x_TI, layer.weight_OI.to(dtype))
        if layer.bias_O is not None:
            y_TO += layer.bias_O
        if residual_TO is not None and (layer.adapter or residual_TO.dtype is not dtype):
            y_TO = residual_TO + y_TO
        outputs.append(y_TO)
        lows.append(low_TR)
    return outputs, SavedForBackward(tuple(lows), seed)


def linear_backward(
    grads_TO: Sequence[Tensor], x_TI: Tensor | None, layers: Sequence[Linear], kept: SavedForBackward, wants_input: bool
) -> tuple[Tensor | None, list[Tensor | None]]:
    """Gradients of the input and of the layers' parameters, four for each. The input may be None where none trains."""
    grad_x_TI: Tensor | None = None
    found: list[Tensor | None] = []
    masks = _masks(x_TI, layers, kept.seed)
    for layer, grad_TO, low_TR, mask_TI, keep in zip(
        layers, grads_TO, kept.lora_inner_TR, masks, _kept_shares(layers), strict=True
    ):
        weight, bias, adapter = layer.weight_OI, layer.bias_O, layer.adapter
        found.append(matmul_nt(grad_TO.t(), _present(x_TI).t()) if weight.requires_grad else None)
        found.append(grad_TO.sum(0) if bias is not None and bias.requires_grad else None)
        if adapter is None:
            found += (None, None)
            continue
        grad_low_TR = matmul_nt(grad_TO, _scaled_b(adapter, keep, grad_TO.dtype).t())
        read_TI = _present(x_TI) if mask_TI is None else _present(x_TI) * mask_TI
        found.append(matmul_nt(grad_low_TR.t(), read_TI.t()))
        found.append(matmul_nt(grad_TO.t(), _present(low_TR).t()).mul_(adapter.scale / keep))
        if wants_input:
            low_a = adapter.a_RI.to(grad_TO.dtype)
            if grad_x_TI is None or mask_TI is not None:
                small_TI = matmul_nt(grad_low_TR, low_a.t())
                small_TI = small_TI if mask_TI is None else small_TI.mul_(mask_TI)
                grad_x_TI = small_TI if grad_x_TI is None else grad_x_TI.add_(small_TI)
            else:
                grad_x_TI = matmul_nt(grad_low_TR, low_a.t(), grad_x_TI, inplace=True)
    for layer, grad_TO in zip(layers, grads_TO, strict=True) if wants_input else ():
        weight_OI = layer.weight_OI.to(grad_TO.dtype)
        grad_x_TI = matmul_nt(grad_TO, weight_OI.t(), grad_x_TI, inplace=True)
    return grad_x_TI, found


def _scaled_b(adapter: LoraMatrices, keep: float, dtype: torch.dtype) -> Tensor:
    return (adapter.b_OR.detach() * (adapter.scale / keep)).to(dtype)


def _kept_shares(layers: Sequence[Linear]) -> Iterator[float]:
    return (keep_probability(_dropout(layer)) for layer in layers)


def _dropout(layer: Linear) -> float:
    return layer.adapter.dropout if layer.adapter else 0.0


def _masks(like_TI: Tensor | None, layers: Sequence[Linear], seed: int) -> Iterator[Tensor | None]:
    """For each layer what its adapter reads of the input (1) and what is dropped (0), always the same for a seed."""
    masks: DropoutMasks | None = None
    for layer in layers:
        if not dropped_levels(_dropout(layer)):
            yield None
            continue
        like = _present(like_TI)
        if masks is None:
            masks = DropoutMasks(seed, like.device)
        yield masks.draw(like, _dropout(layer))


def _present(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor
