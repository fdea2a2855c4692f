"""Output head and cross-entropy at the positions that carry loss, without ever holding all logits.

    hidden (N, D) --chunks of C rows--> logits (C, V) --> loss, hits, and the gradients of hidden and head at once

The gradients are computed in the forward pass, chunk by chunk, so memory is C x V instead of N x V and nothing is
recomputed (the idea: Liger Kernel's fused linear cross-entropy, arXiv:2410.10989). The plain twin is
`F.cross_entropy(hidden @ weight.T, labels, reduction="sum")`.

Shapes: N loss positions of a micro-batch, D hidden size, V vocabulary, C positions of a chunk.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_ELEMENTS = 8 * 1024 * 1024  # logits of one chunk: 32 MB in fp32


def head_loss(
    hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, labels_N: Tensor, dtype: torch.dtype
) -> Tensor:
    """Summed cross-entropy in nats, differentiable in hidden, weight and bias; matrix products run in `dtype`."""
    apply: Any = _HeadLoss.apply
    loss: Tensor = apply(hidden_ND, weight_VD, bias_V, labels_N, dtype)
    return loss


@torch.no_grad()
def head_scores(
    hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, labels_N: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Per-position loss in nats (N,) fp32 and whether the most likely token is the label (N,) bool."""
    losses, hits = [], []
    for rows in _chunks(len(labels_N), weight_VD.shape[0]):
        logits = _logits(hidden_ND[rows], weight_VD, bias_V, dtype)
        losses.append(F.cross_entropy(logits, labels_N[rows], reduction="none"))
        hits.append(logits.argmax(-1) == labels_N[rows])
    if not losses:
        return hidden_ND.new_zeros(0, dtype=torch.float32), labels_N.new_zeros(0, dtype=torch.bool)
    return torch.cat(losses), torch.cat(hits)


def _chunks(positions: int, vocabulary: int) -> list[slice]:
    size = max(1, CHUNK_ELEMENTS // vocabulary)
    return [slice(start, min(start + size, positions)) for start in range(0, positions, size)]


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    return F.linear(hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)).float()


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, dtype: torch.dtype
    ) -> Tensor:
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.zeros_like(hidden) if wants_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if wants_weight else None
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if wants_bias and bias is not None else None
        matrix = weight.to(dtype)
        total = hidden.new_zeros((), dtype=torch.float32)
        for rows in _chunks(len(labels), weight.shape[0]):
            logits = _logits(hidden[rows], matrix, bias, dtype)
            log_sum = torch.logsumexp(logits, dim=-1)
            picked = logits.gather(1, labels[rows, None])[:, 0]
            total += (log_sum - picked).sum()
            # d loss / d logits = softmax - one_hot(label)
            gradient = logits.sub_(log_sum[:, None]).exp_()
            gradient.scatter_add_(1, labels[rows, None], torch.full_like(picked[:, None], -1.0))
            low = gradient.to(dtype)
            if grad_hidden is not None:
                grad_hidden[rows] = (low @ matrix).to(hidden.dtype)
            if grad_weight is not None:
                grad_weight += (low.t() @ hidden[rows].to(dtype)).float()
            if grad_bias is not None:
                grad_bias += gradient.sum(0)
        ctx.save_for_backward(
            grad_hidden,
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None if grad_bias is None or bias is None else grad_bias.to(bias.dtype),
        )
        return total

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        scale = outputs[0]
        return (*(None if saved is None else saved * scale for saved in ctx.saved_tensors), None, None)
