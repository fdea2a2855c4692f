"""Output head and cross-entropy at the positions that carry loss, without ever holding all logits.

    hidden (N, D) --chunks of C rows--> logits (C, V) --> loss, hits, and the gradients of hidden and head at once

The gradients are computed in the forward pass, chunk by chunk, so memory is C x V instead of N x V and nothing is
recomputed (the idea: Liger Kernel's fused linear cross-entropy, arXiv:2410.10989). The plain twin is
`F.cross_entropy(hidden @ weight.T, labels, reduction="sum")`.

Shapes: N loss positions of a micro-batch, D hidden size, V vocabulary, C positions of a chunk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_ELEMENTS = 8 * 1024 * 1024  # logits of one chunk: 32 MB in fp32


@dataclass(frozen=True, slots=True)
class Head:
    """An output head: logits = cap(weight @ (scale * hidden) + bias), where cap(z) = softcap * tanh(z / softcap).

    Matrix products run in `dtype`. Most architectures have neither a scale nor a cap.
    """

    weight_VD: Tensor
    bias_V: Tensor | None
    dtype: torch.dtype
    scale: float = 1.0
    softcap: float | None = None

    def logits(self, hidden_CD: Tensor) -> Tensor:
        """Logits (C, V) in fp32."""
        bias = None if self.bias_V is None else self.bias_V.to(self.dtype)
        logits = F.linear(self._scaled(hidden_CD), self.weight_VD.to(self.dtype), bias).float()
        return logits if self.softcap is None else logits.div_(self.softcap).tanh_().mul_(self.softcap)

    def _scaled(self, hidden: Tensor) -> Tensor:
        return hidden.to(self.dtype) if self.scale == 1.0 else (hidden * self.scale).to(self.dtype)


def head_loss(hidden_ND: Tensor, head: Head, labels_N: Tensor, smoothing: float = 0.0) -> Tensor:
    """Summed cross-entropy in nats, differentiable in hidden, weight and bias.

    `smoothing` spreads that share of each target evenly over the vocabulary (Szegedy et al. 2016, arXiv:1512.00567).
    """
    apply: Any = _HeadLoss.apply
    loss: Tensor = apply(hidden_ND, head.weight_VD, head.bias_V, labels_N, head, smoothing)
    return loss


@torch.no_grad()
def head_scores(hidden_ND: Tensor, head: Head, labels_N: Tensor) -> tuple[Tensor, Tensor]:
    """Per-position loss in nats (N,) fp32 and whether the most likely token is the label (N,) bool."""
    losses, hits = [], []
    for rows in _chunks(len(labels_N), head.weight_VD.shape[0]):
        logits = head.logits(hidden_ND[rows])
        losses.append(F.cross_entropy(logits, labels_N[rows], reduction="none"))
        hits.append(logits.argmax(-1) == labels_N[rows])
    if not losses:
        return hidden_ND.new_zeros(0, dtype=torch.float32), labels_N.new_zeros(0, dtype=torch.bool)
    return torch.cat(losses), torch.cat(hits)


def _chunks(positions: int, vocabulary: int) -> list[slice]:
    size = max(1, CHUNK_ELEMENTS // vocabulary)
    return [slice(start, min(start + size, positions)) for start in range(0, positions, size)]


def _gradient(logits: Tensor, labels: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """Summed loss, and its gradient in the logits, written over them: softmax - target."""
    log_sum = torch.logsumexp(logits, dim=-1)
    picked = logits.gather(1, labels[:, None])[:, 0]
    loss = (log_sum - (1.0 - smoothing) * picked).sum()
    if smoothing:
        loss = loss - smoothing * logits.mean(-1).sum()
    gradient = logits.sub_(log_sum[:, None]).exp_()
    if smoothing:
        gradient.sub_(smoothing / logits.shape[1])
    gradient.scatter_add_(1, labels[:, None], torch.full_like(picked[:, None], smoothing - 1.0))
    return loss, gradient


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, head: Head, smoothing: float
    ) -> Tensor:
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.zeros_like(hidden) if wants_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if wants_weight else None
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if wants_bias and bias is not None else None
        matrix = weight.to(head.dtype)
        chunked = Head(matrix, bias, head.dtype, head.scale, head.softcap)
        total = hidden.new_zeros((), dtype=torch.float32)
        for rows in _chunks(len(labels), weight.shape[0]):
            logits = chunked.logits(hidden[rows])
            # The derivative of the cap needs the capped logits, which the gradient is written over.
            slope = None if head.softcap is None else 1.0 - (logits / head.softcap).square()
            loss, gradient = _gradient(logits, labels[rows], smoothing)
            total += loss
            if slope is not None:
                gradient.mul_(slope)
            low = gradient.to(head.dtype)
            if grad_hidden is not None:
                grad_hidden[rows] = (low @ matrix).mul_(head.scale).to(hidden.dtype)
            if grad_weight is not None:
                grad_weight += (low.t() @ chunked._scaled(hidden[rows])).float()
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
        return (*(None if saved is None else saved * scale for saved in ctx.saved_tensors), None, None, None)
