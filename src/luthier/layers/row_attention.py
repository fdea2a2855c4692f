"""Attention of packed rows by batched matrix products, for the CPU.

    rows       | a a a | b b |         each row over itself alone; in cross-attention, over its own source alone
    a row      queries in blocks; where attention is causal, a block sees the keys up to its own end (and no further
               back than the window)
    heads      the G query heads of a key head are stacked, so keys and values are never repeated

On CPUs it is faster than the flash kernel forward (the rows are short) and far faster backward. Nothing but queries,
keys and values is kept; the weights are computed again, dropout's masks drawn again. The reference is
scaled_dot_product_attention (tests/layers/test_row_attention.py).

Shapes: T tokens, S source tokens (T itself, but for cross-attention), H heads, K key/value heads, G = H / K, D head
size, L longest row; of a block: Q queries, X = G * Q, Y keys it sees.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from luthier.layers.dropout import DropoutMasks, draw_seed, keep_probability
from luthier.layers.product import bmm_fp32

BLOCK = 128  # queries at a time: of a long row, half of what causality hides is never computed


@dataclass(frozen=True, slots=True)
class Block:
    """Queries and the keys they see: as places among all tokens, and as places in their row."""

    queries: slice
    keys: slice
    query_places: slice
    key_places: slice


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionSpec:
    """Where the rows lie, how scores are scaled, how far back a token sees (`window`; None: all of its row), and the
    share of weights that is dropped. `source_lengths` are the rows of the keys in cross-attention, which is not causal.
    """

    lengths: tuple[int, ...]
    scale: float
    window: int | None = None
    causal: bool = True
    source_lengths: tuple[int, ...] = ()
    dropout: float = 0.0

    def blocks(self) -> Iterator[Block]:
        """All blocks, row after row."""
        start = source = 0
        for length, reach in zip(self.lengths, self.source_lengths or self.lengths, strict=True):
            for first in range(0, length, BLOCK):
                end = min(first + BLOCK, length)
                seen = 0 if self.window is None else max(0, first - self.window + 1)
                last = end if self.causal else reach
                yield Block(
                    slice(start + first, start + end), slice(source + seen, source + last),
                    slice(first, end), slice(seen, last),
                )  # fmt: skip
            start, source = start + length, source + reach


def row_attention(
    query_THD: Tensor, key_SKD: Tensor, value_SKD: Tensor, rows: AttentionSpec, bias_HLL: Tensor | None = None
) -> Tensor:
    """Attention of each row (T, H, D), differentiable in all tensors. `bias_HLL` is added to the scores."""
    apply: Any = _RowAttention.apply
    attended: Tensor = apply(query_THD, key_SKD, value_SKD, bias_HLL, rows)
    return attended


class _RowAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query_THD: Tensor, key_SKD: Tensor, value_SKD: Tensor, bias_HLL: Tensor | None, rows: AttentionSpec
    ) -> Tensor:
        ctx.save_for_backward(query_THD, key_SKD, value_SKD, bias_HLL)
        ctx.rows, ctx.seed = rows, draw_seed() if rows.dropout else 0
        attended_THD = torch.empty_like(query_THD)
        weigh = _Weights(rows, bias_HLL, key_SKD, ctx.seed)
        for block in rows.blocks():
            key_KYD, value_KYD = key_SKD[block.keys].transpose(0, 1), value_SKD[block.keys].transpose(0, 1)
            weights_KXY, mask_KXY = weigh(_stack(query_THD[block.queries], len(key_KYD)), key_KYD, block)
            if mask_KXY is not None:
                weights_KXY *= mask_KXY
            _unstack(weights_KXY @ value_KYD, attended_THD[block.queries])
        return attended_THD

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        query_THD, key_SKD, value_SKD, bias_HLL = ctx.saved_tensors
        grad_THD, rows = outputs[0], ctx.rows
        # Blocks of one row add to the same keys, in fp32.
        wide = torch.float32 if max(rows.lengths) > BLOCK else key_SKD.dtype
        grad_query, grad_key = torch.empty_like(query_THD), torch.zeros_like(key_SKD, dtype=wide)
        grad_value = torch.zeros_like(grad_key)
        grad_bias = torch.zeros_like(bias_HLL, dtype=torch.float32) if ctx.needs_input_grad[3] else None
        weigh = _Weights(rows, bias_HLL, key_SKD, ctx.seed)
        for block in rows.blocks():
            queries, keys = block.queries, block.keys
            key_KYD, value_KYD = key_SKD[keys].transpose(0, 1), value_SKD[keys].transpose(0, 1)
            query_KXD, grad_KXD = (_stack(x_THD[queries], len(key_KYD)) for x_THD in (query_THD, grad_THD))
            weights_KXY, mask_KXY = weigh(query_KXD, key_KYD, block)
            kept_KXY = weights_KXY if mask_KXY is None else weights_KXY * mask_KXY
            grad_value[keys] += (kept_KXY.transpose(1, 2) @ grad_KXD).transpose(0, 1)
            grad_weights = grad_KXD @ value_KYD.transpose(1, 2)
            if mask_KXY is not None:
                grad_weights *= mask_KXY
            scores_KXY = torch._softmax_backward_data(grad_weights, weights_KXY, -1, weights_KXY.dtype)
            _unstack(_scaled_product(scores_KXY, key_KYD, rows.scale), grad_query[queries])
            grad_key[keys] += _scaled_product(scores_KXY.transpose(1, 2), query_KXD, rows.scale).transpose(0, 1)
            if grad_bias is not None:
                corner = grad_bias[:, block.query_places, block.key_places]
                corner += scores_KXY.reshape(corner.shape)
        grads = grad_query, grad_key.to(key_SKD.dtype), grad_value.to(key_SKD.dtype)
        return *grads, None if grad_bias is None else grad_bias.to(bias_HLL.dtype), None


class _Weights:
    """The weights of one block after another, the same in the forward and the backward pass."""

    def __init__(self, rows: AttentionSpec, bias_HLL: Tensor | None, like: Tensor, seed: int) -> None:
        self.rows, self.bias_HLL = rows, bias_HLL
        self.triangle_QQ = torch.full((BLOCK, BLOCK), float("-inf"), device=like.device).triu(1)
        self.masks = DropoutMasks(seed, like.device) if rows.dropout else None

    def __call__(self, query_KXD: Tensor, key_KYD: Tensor, block: Block) -> tuple[Tensor, Tensor | None]:
        """Softmax of the scores, and what dropout multiplies them by.

        Scores are kept in fp32: rounded to bf16, scores of 100 would be off by a quarter.
        """
        scores_KXY = bmm_fp32(query_KXD, key_KYD.transpose(1, 2), self.rows.scale)
        queries = block.queries.stop - block.queries.start
        by_query = scores_KXY.view(len(scores_KXY), -1, queries, scores_KXY.shape[2])
        if self.bias_HLL is not None:
            corner = self.bias_HLL[:, block.query_places, block.key_places]
            by_query += corner.reshape(by_query.shape)
        if self.rows.causal:
            self._hide(by_query)
        weights_KXY = torch.softmax(scores_KXY, -1).to(query_KXD.dtype)
        if self.masks is None:
            return weights_KXY, None
        mask_KXY = self.masks.draw(weights_KXY, self.rows.dropout)
        return weights_KXY, mask_KXY.div_(keep_probability(self.rows.dropout))

    def _hide(self, scores_KGQY: Tensor) -> None:
        """Write over the scores of keys that must not be seen; queries end where their keys end."""
        queries, keys = scores_KGQY.shape[2:]
        scores_KGQY[..., keys - queries :].add_(self.triangle_QQ[:queries, :queries])
        window = self.rows.window
        if window is not None and keys > window:  # query by query, the first key that is seen moves one further
            scores_KGQY.add_(scores_KGQY.new_full((queries, keys), float("-inf")).tril(keys - queries - window))


def _scaled_product(left: Tensor, right: Tensor, scale: float) -> Tensor:
    return torch.baddbmm(left[:, :1, :1], left, right, beta=0, alpha=scale)


def _stack(x_QHD: Tensor, key_heads: int) -> Tensor:
    """The heads that share a key head, one under the other."""
    queries, heads, size = x_QHD.shape
    grouped = x_QHD.view(queries, key_heads, heads // key_heads, size).permute(1, 2, 0, 3)
    return grouped.reshape(key_heads, -1, size)


def _unstack(x_KXD: Tensor, into_QHD: Tensor) -> None:
    queries, heads, size = into_QHD.shape
    key_heads = len(x_KXD)
    into_QHD.view(queries, key_heads, heads // key_heads, size).copy_(
        x_KXD.view(key_heads, -1, queries, size).permute(2, 0, 1, 3)
    )
