"""Linear layers that read the same input, with or without LoRA adapters, and their backward pass.

    y = x W' + bias + scale * (dropped x) A' B'          W in its own type, multiplied in the compute type

Only trainable parameters get a gradient: under an adapter no gradient of W is computed. Only the small products x A'
are saved for the backward pass; the caller saves or recomputes the input. Dropout masks are drawn from a seed, and
redrawn in the backward pass. The reference is nn.Linear, wrapped by PEFT's LoRA layer (tests/layers/test_linear.py).

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
    """A LoRA adapter's two matrices. `dropout` is 0 in evaluation."""

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
        """Weight, bias, A and B: the order of the gradients of `linear_backward`."""
        adapter = self.adapter
        return self.weight_OI, self.bias_O, *((adapter.a_RI, adapter.b_OR) if adapter else (None, None))

    @property
    def is_trainable(self) -> bool:
        return any(parameter is not None and parameter.requires_grad for parameter in self.parameters)


@dataclass(frozen=True, slots=True)
class SavedForBackward:
    """Saved by the forward pass: x A' of each layer (None without adapter), and the seed of the dropout masks."""

    lora_inner_TR: tuple[Tensor | None, ...]
    seed: int


def seed_of(layers: Sequence[Linear]) -> int:
    """Draw a seed for the layers' masks; 0, without drawing, if no layer has dropout."""
    return draw_seed() if any(map(_dropout, layers)) else 0


def linear(
    x_TI: Tensor, layers: Sequence[Linear], residual_TO: Tensor | None = None
) -> tuple[list[Tensor], SavedForBackward]:
    """The outputs of the layers, without autograd; `residual_TO` is added to each, which then has its type (which may
    be wider than the input's).
    """
    seed, dtype = seed_of(layers), x_TI.dtype
    outputs: list[Tensor] = []
    lora_inner: list[Tensor | None] = []
    for layer, mask_TI, keep_prob in zip(layers, _masks(x_TI, layers, seed), _keep_probabilities(layers), strict=True):
        inner_TR = None
        if layer.adapter:
            inner_TR = matmul_nt(x_TI if mask_TI is None else x_TI * mask_TI, layer.adapter.a_RI.to(dtype))
            # The small LoRA term first: added to a rounded result, it would be rounded away.
            lora_TO = matmul_nt(inner_TR, _scaled_b(layer.adapter, keep_prob, dtype))
            y_TO = matmul_nt(x_TI, layer.weight_OI.to(dtype), lora_TO, inplace=True)
        elif residual_TO is not None and residual_TO.dtype is dtype:
            y_TO = matmul_nt(x_TI, layer.weight_OI.to(dtype), residual_TO)
        else:
            y_TO = matmul_nt(x_TI, layer.weight_OI.to(dtype))
        if layer.bias_O is not None:
            y_TO += layer.bias_O
        if residual_TO is not None and (layer.adapter or residual_TO.dtype is not dtype):
            y_TO = residual_TO + y_TO
        outputs.append(y_TO)
        lora_inner.append(inner_TR)
    return outputs, SavedForBackward(tuple(lora_inner), seed)


def linear_backward(
    grads_TO: Sequence[Tensor], x_TI: Tensor | None, layers: Sequence[Linear], ctx: SavedForBackward, wants_input: bool
) -> tuple[Tensor | None, list[Tensor | None]]:
    """Gradients of the input and of the layers' parameters, four for each; `x_TI` may be None if none trains."""
    grad_x_TI: Tensor | None = None
    param_grads: list[Tensor | None] = []
    masks = _masks(x_TI, layers, ctx.seed)
    for layer, grad_TO, inner_TR, mask_TI, keep_prob in zip(
        layers, grads_TO, ctx.lora_inner_TR, masks, _keep_probabilities(layers), strict=True
    ):
        weight, bias, adapter = layer.weight_OI, layer.bias_O, layer.adapter
        param_grads.append(matmul_nt(grad_TO.t(), _not_none(x_TI).t()) if weight.requires_grad else None)
        param_grads.append(grad_TO.sum(0) if bias is not None and bias.requires_grad else None)
        if adapter is None:
            param_grads += (None, None)
            continue
        grad_inner_TR = matmul_nt(grad_TO, _scaled_b(adapter, keep_prob, grad_TO.dtype).t())
        dropped_TI = _not_none(x_TI) if mask_TI is None else _not_none(x_TI) * mask_TI
        param_grads.append(matmul_nt(grad_inner_TR.t(), dropped_TI.t()))
        param_grads.append(matmul_nt(grad_TO.t(), _not_none(inner_TR).t()).mul_(adapter.scale / keep_prob))
        if wants_input:
            a_RI = adapter.a_RI.to(grad_TO.dtype)
            if grad_x_TI is None or mask_TI is not None:
                lora_TI = matmul_nt(grad_inner_TR, a_RI.t())
                lora_TI = lora_TI if mask_TI is None else lora_TI.mul_(mask_TI)
                grad_x_TI = lora_TI if grad_x_TI is None else grad_x_TI.add_(lora_TI)
            else:
                grad_x_TI = matmul_nt(grad_inner_TR, a_RI.t(), grad_x_TI, inplace=True)
    for layer, grad_TO in zip(layers, grads_TO, strict=True) if wants_input else ():
        weight_OI = layer.weight_OI.to(grad_TO.dtype)
        grad_x_TI = matmul_nt(grad_TO, weight_OI.t(), grad_x_TI, inplace=True)
    return grad_x_TI, param_grads


def _scaled_b(adapter: LoraMatrices, keep_prob: float, dtype: torch.dtype) -> Tensor:
    return (adapter.b_OR.detach() * (adapter.scale / keep_prob)).to(dtype)


def _keep_probabilities(layers: Sequence[Linear]) -> Iterator[float]:
    return (keep_probability(_dropout(layer)) for layer in layers)


def _dropout(layer: Linear) -> float:
    return layer.adapter.dropout if layer.adapter else 0.0


def _masks(like_TI: Tensor | None, layers: Sequence[Linear], seed: int) -> Iterator[Tensor | None]:
    """Each adapter's dropout mask of its input (1 kept, 0 dropped), always the same for a seed; None: no dropout."""
    masks: DropoutMasks | None = None
    for layer in layers:
        if not dropped_levels(_dropout(layer)):
            yield None
            continue
        like = _not_none(like_TI)
        if masks is None:
            masks = DropoutMasks(seed, like.device)
        yield masks.draw(like, _dropout(layer))


def _not_none(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor
