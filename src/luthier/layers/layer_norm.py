"""Layer norm (Ba et al. 2016, arXiv:1607.06450) by torch's fused kernels, with a backward pass that saves
little more than its input.

    y = (x - mean(x)) / sqrt(variance(x) + epsilon) * weight + bias        in fp32, rounded once

The reference is nn.LayerNorm (tests/layers/test_layer_norm.py).

Shapes: T tokens, D size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

_aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class LayerNorm:
    """One layer norm."""

    weight_D: Tensor
    bias_D: Tensor
    epsilon: float

    def __call__(self, x_TD: Tensor, dtype: torch.dtype) -> Tensor:
        """The normed input in `dtype`, differentiable in the input, the weight and the bias."""
        apply: Any = _LayerNormFunction.apply
        normed_TD: Tensor = apply(x_TD, self.weight_D, self.bias_D, self, dtype)
        return normed_TD

    def like(self, x_TD: Tensor) -> tuple[Tensor, Tensor]:
        """Weight and bias in the dtype that the kernels expect: fp32 on a CPU, so that the moments are fp32; elsewhere
        the input's, since the moments are in fp32 anyway.
        """
        dtype = torch.float32 if x_TD.device.type == "cpu" else x_TD.dtype
        return self.weight_D.detach().to(dtype), self.bias_D.detach().to(dtype)


class Moments(NamedTuple):
    """Mean of each token, and the inverse of its standard deviation."""

    mean_T1: Tensor
    inverse_T1: Tensor


def layer_norm(x_TD: Tensor, norm: LayerNorm, dtype: torch.dtype) -> tuple[Tensor, Moments]:
    """The normed input in `dtype`, without autograd, and its moments for the backward pass."""
    normed_TD, *moments = _aten.native_layer_norm(x_TD, x_TD.shape[1:], *norm.like(x_TD), norm.epsilon)
    return normed_TD.to(dtype), Moments(*moments)


def layer_norm_backward(
    grad_TD: Tensor, x_TD: Tensor, norm: LayerNorm, moments: Moments, wants: tuple[bool, bool]
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Gradients of the input (a new tensor of its type) and, if `wants`, of weight and bias."""
    # On a CPU torch sums the gradients of weight and bias in the input's type: in bf16, 5 % off after 1,800 tokens.
    wide_TD = x_TD.float() if any(wants) else x_TD
    grad_x_TD, grad_weight_D, grad_bias_D = _aten.native_layer_norm_backward(
        grad_TD.to(wide_TD.dtype), wide_TD, x_TD.shape[1:], *moments, *norm.like(wide_TD), [True, *wants]
    )
    return grad_x_TD.to(x_TD.dtype), grad_weight_D, grad_bias_D


class _LayerNormFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_TD: Tensor, weight_D: Tensor, bias_D: Tensor, norm: LayerNorm, dtype: torch.dtype
    ) -> Tensor:
        normed_TD, moments = layer_norm(x_TD, norm, dtype)
        ctx.save_for_backward(x_TD, *moments)
        ctx.norm = norm
        return normed_TD

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        x_TD, *moments = ctx.saved_tensors
        wants = ctx.needs_input_grad[1:3]
        return *layer_norm_backward(outputs[0], x_TD, ctx.norm, Moments(*moments), wants), None, None
