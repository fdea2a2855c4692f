"""Output head and cross-entropy at the label positions, without storing all logits at once.

    hidden (N, D) --chunks of C rows--> logits (C, V) --> loss, hits, and the gradients of hidden and head at once

The gradients are computed in the forward pass, chunk by chunk, so memory is C x V instead of N x V and nothing is
recomputed (the idea: Liger Kernel's fused linear cross-entropy, arXiv:2410.10989). The reference is
`F.cross_entropy(hidden @ weight.T, labels, reduction="sum")`.

Shapes: N label positions of a micro-batch, D hidden size, V vocabulary, C positions of a chunk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from luthier.layers.product import matmul_nt

CHUNK_ELEMENTS = 8 * 1024 * 1024  # logits of one chunk
CACHED_ELEMENTS = 256 * 1024  # of a chunk in fp32 at once, on a CPU: 1 MB, which fits in its cache
CHUNKS_AT_ONCE = 8  # whose weight gradient is one product: each product writes a tensor as large as the weight


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputHead:
    """An output head: logits = cap(weight @ (scale * hidden) + bias), where cap(z) = softcap * tanh(z / softcap).

    Matrix products run in `dtype`. Most architectures have neither a scale nor a cap.
    """

    weight_VD: Tensor
    bias_V: Tensor | None
    dtype: torch.dtype
    scale: float = 1.0
    softcap: float | None = None

    def logits(self, hidden_CD: Tensor) -> Tensor:
        """Logits (C, V) in fp32, without autograd."""
        return self.capped(self.products(hidden_CD))

    def products(self, hidden_CD: Tensor) -> Tensor:
        """Logits (C, V) before the softcap, in the compute type, without autograd."""
        hidden, weight_VD = self._scaled(hidden_CD), self.weight_VD.to(self.dtype)
        if self.bias_V is None:
            return matmul_nt(hidden, weight_VD)
        return F.linear(hidden, weight_VD, self.bias_V.to(self.dtype))

    def capped(self, products_CV: Tensor) -> Tensor:
        """Logits in fp32; may overwrite `products_CV`."""
        logits = products_CV.float()
        return logits if self.softcap is None else logits.div_(self.softcap).tanh_().mul_(self.softcap)

    def _scaled(self, hidden: Tensor) -> Tensor:
        return hidden.to(self.dtype) if self.scale == 1.0 else (hidden * self.scale).to(self.dtype)


def head_loss(hidden_ND: Tensor, head: OutputHead, labels_N: Tensor, smoothing: float = 0.0) -> Tensor:
    """Summed cross-entropy in nats, differentiable in hidden, weight and bias.

    `smoothing` spreads that share of each target evenly over the vocabulary (Szegedy et al. 2016, arXiv:1512.00567).
    """
    apply: Any = _HeadLoss.apply
    loss: Tensor = apply(hidden_ND, head.weight_VD, head.bias_V, labels_N, head, smoothing)
    return loss


@torch.no_grad()
def head_scores(hidden_ND: Tensor, head: OutputHead, labels_N: Tensor) -> tuple[Tensor, Tensor]:
    """Per-position loss in nats (N,) fp32 and whether the most likely token is the label (N,) bool."""
    losses, hits = [], []
    for rows in _chunks(len(labels_N), head.weight_VD.shape[0], CHUNK_ELEMENTS):
        logits = head.logits(hidden_ND[rows])
        losses.append(F.cross_entropy(logits, labels_N[rows], reduction="none"))
        hits.append(logits.argmax(-1) == labels_N[rows])
    if not losses:
        return hidden_ND.new_zeros(0, dtype=torch.float32), labels_N.new_zeros(0, dtype=torch.bool)
    return torch.cat(losses), torch.cat(hits)


def _chunks(positions: int, vocabulary: int, elements: int) -> list[slice]:
    size = max(1, elements // vocabulary)
    return [slice(start, min(start + size, positions)) for start in range(0, positions, size)]


def _write_gradient(
    products_CV: Tensor, head: OutputHead, labels_C: Tensor, smoothing: float, grad_bias: Tensor | None
) -> Tensor:
    """Overwrite a head's products with the loss's gradient, add the bias's to `grad_bias`, and return the summed loss.

    It processes a few rows at a time, so that their fp32 copy fits in the processor's cache.
    """
    total = products_CV.new_zeros((), dtype=torch.float32)
    size = CACHED_ELEMENTS if products_CV.device.type == "cpu" else products_CV.numel()
    for rows in _chunks(len(products_CV), products_CV.shape[1], size):
        logits = head.capped(products_CV[rows])
        loss, gradient = _gradient(logits, labels_C[rows], smoothing)
        total += loss
        if head.softcap is not None:
            gradient.mul_(1.0 - (logits / head.softcap).square())
        if grad_bias is not None:
            grad_bias += gradient.sum(0)
        products_CV[rows] = gradient
    return total


def _gradient(logits: Tensor, labels: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """Summed loss, and its gradient with respect to the logits: softmax - target.

    torch's softmax reads the vocabulary once where logsumexp and exp read it twice (and, on a CPU, are slow where
    weights underflow). The largest weight is exp(0) / sum, so it gives the sum's logarithm without rounding loss.
    """
    gradient = torch.softmax(logits, dim=-1)
    log_sum = logits.amax(-1) - gradient.amax(-1).log()
    label_logits = logits.gather(1, labels[:, None])[:, 0]
    loss = (log_sum - (1.0 - smoothing) * label_logits).sum()
    if smoothing:
        loss = loss - smoothing * logits.mean(-1).sum()
    if smoothing:
        gradient.sub_(smoothing / logits.shape[1])
    gradient.scatter_add_(1, labels[:, None], torch.full_like(label_logits[:, None], smoothing - 1.0))
    return loss, gradient


class _WeightGradient:
    """Accumulates the weight's gradient in fp32 from the gradients of the chunks."""

    def __init__(self) -> None:
        self.pending: list[tuple[Tensor, Tensor]] = []
        self.total_VD: Tensor | None = None

    def add(self, gradient_CV: Tensor, hidden_CD: Tensor) -> None:
        """Add one chunk; both tensors are kept until the next flush."""
        self.pending.append((gradient_CV, hidden_CD))
        if len(self.pending) == CHUNKS_AT_ONCE:
            self._flush()

    def of(self, weight_VD: Tensor) -> Tensor:
        """The total, in the weight's type."""
        self._flush()
        return torch.zeros_like(weight_VD) if self.total_VD is None else self.total_VD.to(weight_VD.dtype)

    def _flush(self) -> None:
        if not self.pending:
            return
        gradients, hidden = (torch.cat(parts) for parts in zip(*self.pending, strict=True))
        self.pending.clear()
        gradient_VD = matmul_nt(gradients.t(), hidden.t()).float()
        self.total_VD = gradient_VD if self.total_VD is None else self.total_VD.add_(gradient_VD)


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        head: OutputHead,
        smoothing: float,
    ) -> Tensor:
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.zeros_like(hidden) if wants_hidden else None
        weight_gradient = _WeightGradient() if wants_weight else None
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if wants_bias and bias is not None else None
        matrix = weight.to(head.dtype)
        chunked = OutputHead(weight_VD=matrix, bias_V=bias, dtype=head.dtype, scale=head.scale, softcap=head.softcap)
        total = hidden.new_zeros((), dtype=torch.float32)
        for rows in _chunks(len(labels), weight.shape[0], CHUNK_ELEMENTS):
            gradient = chunked.products(hidden[rows])
            total += _write_gradient(gradient, chunked, labels[rows], smoothing, grad_bias)
            if grad_hidden is not None:
                grad_hidden[rows] = matmul_nt(gradient, matrix.t()).mul_(head.scale).to(hidden.dtype)
            if weight_gradient is not None:
                weight_gradient.add(gradient, chunked._scaled(hidden[rows]))
        ctx.save_for_backward(
            grad_hidden,
            None if weight_gradient is None else weight_gradient.of(weight),
            None if grad_bias is None or bias is None else grad_bias.to(bias.dtype),
        )
        return total

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        return (*(None if saved is None else saved.mul_(outputs[0]) for saved in ctx.saved_tensors), None, None, None)
