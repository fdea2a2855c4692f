"""RMS norm (Zhang & Sennrich 2019, arXiv:1910.07467) with a backward pass that saves only its input.

    y = x / sqrt(mean(x^2) + epsilon) * (weight + offset)        in fp32, rounded once, for any type of x

It processes a few hundred tokens at a time, so that their fp32 copy fits in the processor's cache and the whole input
is never copied to fp32. The reference is transformers' own module (tests/layers/test_rms_norm.py).

Shapes: T tokens (of heads: tokens x heads), D size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

CHUNK_ELEMENTS = 256 * 1024  # of one chunk: 1 MB in fp32


@dataclass(frozen=True, slots=True)
class RmsNorm:
    """One RMS norm; `offset` is 1 if the stored weight is the difference from 1 (Gemma)."""

    weight_D: Tensor
    epsilon: float
    offset: float = 0.0

    def __call__(self, x_TD: Tensor, dtype: torch.dtype) -> Tensor:
        """The normed input in `dtype`, differentiable in the input and the weight."""
        apply: Any = _RmsNormFunction.apply
        normed_TD: Tensor = apply(x_TD, self.weight_D, self, dtype)
        return normed_TD

    def factor_D(self) -> Tensor:
        """The factor of the normed input, in fp32."""
        weight = self.weight_D.detach().float()
        return weight + self.offset if self.offset else weight


def rms_norm(x_TD: Tensor, norm: RmsNorm, dtype: torch.dtype) -> Tensor:
    """The normed input in `dtype`, without autograd."""
    normed_TD = torch.empty_like(x_TD, dtype=dtype)
    factor_D = norm.factor_D()
    for rows in _chunks(x_TD):
        unit, _ = _normalize(x_TD[rows], norm.epsilon)
        normed_TD[rows] = unit.mul_(factor_D)
    return normed_TD


def rms_norm_backward(
    grad_TD: Tensor, x_TD: Tensor, norm: RmsNorm, wants_weight: bool, residual_TD: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Gradients of the input, in its type, and if `wants_weight` of the weight, in fp32.

    `residual_TD` is added to the gradient of the input and not changed.
    """
    grad_x_TD = torch.empty_like(x_TD)
    grad_weight_D = torch.zeros_like(norm.weight_D, dtype=torch.float32) if wants_weight else None
    factor_D = norm.factor_D()
    for rows in _chunks(x_TD):
        unit, scale = _normalize(x_TD[rows], norm.epsilon)
        grad = grad_TD[rows].float()
        slope = unit * grad
        if grad_weight_D is not None:
            grad_weight_D += slope.sum(0)
        share = (slope @ factor_D)[:, None].div_(x_TD.shape[1])
        grad = (grad * factor_D).sub_(unit.mul_(share)).mul_(scale)
        grad_x_TD[rows] = grad if residual_TD is None else grad.add_(residual_TD[rows])
    return grad_x_TD, grad_weight_D


def _normalize(x: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """The rows scaled to a mean square of 1, and the scale: new tensors in fp32."""
    size = x.shape[1]
    wide = x.to(torch.float32, copy=True)
    scale = torch.linalg.vector_norm(wide, dim=1, keepdim=True).square_().div_(size).add_(epsilon).rsqrt_()
    return wide.mul_(scale), scale


def _chunks(x_TD: Tensor) -> Iterator[slice]:
    tokens, size = x_TD.shape
    step = max(1, CHUNK_ELEMENTS // size) if x_TD.device.type == "cpu" else max(1, tokens)
    return (slice(start, start + step) for start in range(0, tokens, step))


class _RmsNormFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, weight_D: Tensor, norm: RmsNorm, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(x_TD)
        ctx.norm = norm
        return rms_norm(x_TD, norm, dtype)

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        (x_TD,) = ctx.saved_tensors
        grad_x_TD, grad_weight_D = rms_norm_backward(outputs[0], x_TD, ctx.norm, ctx.needs_input_grad[1])
        return grad_x_TD, grad_weight_D, None, None
