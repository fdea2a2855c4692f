"""Attention of packed rows by batched matrix products, for the CPU.

    rows       | a a a | b b |         attention within each row; in cross-attention, over the row's own source
    a row      queries in blocks; if causal, a block attends to the keys up to its own end (and no further back than
               the window)
    heads      the G query heads of a key head are stacked, so keys and values are never repeated

On CPUs it is faster than the flash kernel forward (the rows are short) and far faster backward. Only queries, keys and
values are saved; the backward pass recomputes weights and redraws dropout masks. The reference is
scaled_dot_product_attention (tests/layers/test_row_attention.py).

Shapes: T tokens, S source tokens (S = T except in cross-attention), H heads, K key/value heads, G = H / K, D head
size, L longest row; of a block: Q queries, X = G * Q, Y keys.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from luthier.layers.dropout import DropoutMasks, draw_seed, keep_probability
from luthier.layers.product import bmm_fp32

BLOCK = 128  # queries at a time: about half of a long row's causally masked scores are not computed


@dataclass(frozen=True, slots=True)
class Block:
    """Queries and the keys they attend to: as slices of all tokens, and as slices of their row."""

    queries: slice
    keys: slice
    query_positions: slice
    key_positions: slice


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionSpec:
    """The lengths of the rows, the scale of scores, the attention `window` (None: the whole row), and the dropout
    probability. `source_lengths` are the row lengths of the keys in cross-attention, which is not causal.
    """

    lengths: tuple[int, ...]
    scale: float
    window: int | None = None
    causal: bool = True
    source_lengths: tuple[int, ...] = ()
    dropout: float = 0.0

    def blocks(self) -> Iterator[Block]:
        """All blocks, row after row."""
        start = source_start = 0
        for length, source_length in zip(self.lengths, self.source_lengths or self.lengths, strict=True):
            for first_query in range(0, length, BLOCK):
                end = min(first_query + BLOCK, length)
                first_key = 0 if self.window is None else max(0, first_query - self.window + 1)
                last_key = end if self.causal else source_length
                yield Block(
                    slice(start + first_query, start + end), slice(source_start + first_key, source_start + last_key),
                    slice(first_query, end), slice(first_key, last_key),
                )  # fmt: skip
            start, source_start = start + length, source_start + source_length


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
        weights_of = _AttentionWeights(rows, bias_HLL, key_SKD, ctx.seed)
        for block in rows.blocks():
            key_KYD, value_KYD = key_SKD[block.keys].transpose(0, 1), value_SKD[block.keys].transpose(0, 1)
            weights_KXY, mask_KXY = weights_of(_stack(query_THD[block.queries], len(key_KYD)), key_KYD, block)
            if mask_KXY is not None:
                weights_KXY *= mask_KXY
            _unstack(weights_KXY @ value_KYD, attended_THD[block.queries])
        return attended_THD

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        query_THD, key_SKD, value_SKD, bias_HLL = ctx.saved_tensors
        grad_THD, rows = outputs[0], ctx.rows
        # Blocks of one row add to the same keys, in fp32.
        grad_dtype = torch.float32 if max(rows.lengths) > BLOCK else key_SKD.dtype
        grad_query, grad_key = torch.empty_like(query_THD), torch.zeros_like(key_SKD, dtype=grad_dtype)
        grad_value = torch.zeros_like(grad_key)
        grad_bias = torch.zeros_like(bias_HLL, dtype=torch.float32) if ctx.needs_input_grad[3] else None
        weights_of = _AttentionWeights(rows, bias_HLL, key_SKD, ctx.seed)
        for block in rows.blocks():
            queries, keys = block.queries, block.keys
            key_KYD, value_KYD = key_SKD[keys].transpose(0, 1), value_SKD[keys].transpose(0, 1)
            query_KXD, grad_KXD = (_stack(x_THD[queries], len(key_KYD)) for x_THD in (query_THD, grad_THD))
            weights_KXY, mask_KXY = weights_of(query_KXD, key_KYD, block)
            dropped_KXY = weights_KXY if mask_KXY is None else weights_KXY * mask_KXY
            grad_value[keys] += (dropped_KXY.transpose(1, 2) @ grad_KXD).transpose(0, 1)
            grad_weights = grad_KXD @ value_KYD.transpose(1, 2)
            if mask_KXY is not None:
                grad_weights *= mask_KXY
            scores_KXY = torch._softmax_backward_data(grad_weights, weights_KXY, -1, weights_KXY.dtype)
            _unstack(_scaled_product(scores_KXY, key_KYD, rows.scale), grad_query[queries])
            grad_key[keys] += _scaled_product(scores_KXY.transpose(1, 2), query_KXD, rows.scale).transpose(0, 1)
            if grad_bias is not None:
                block_grad = grad_bias[:, block.query_positions, block.key_positions]
                block_grad += scores_KXY.reshape(block_grad.shape)
        grads = grad_query, grad_key.to(key_SKD.dtype), grad_value.to(key_SKD.dtype)
        return *grads, None if grad_bias is None else grad_bias.to(bias_HLL.dtype), None


class _AttentionWeights:
    """Computes the attention weights of successive blocks, the same in the forward and the backward pass."""

    def __init__(self, rows: AttentionSpec, bias_HLL: Tensor | None, like: Tensor, seed: int) -> None:
        self.rows, self.bias_HLL = rows, bias_HLL
        self.triangle_QQ = torch.full((BLOCK, BLOCK), float("-inf"), device=like.device).triu(1)
        self.masks = DropoutMasks(seed, like.device) if rows.dropout else None

    def __call__(self, query_KXD: Tensor, key_KYD: Tensor, block: Block) -> tuple[Tensor, Tensor | None]:
        """Softmax of the scores, and the scaled dropout mask.

        Scores are in fp32: rounded to bf16, scores of 100 would be off by a quarter.
        """
        scores_KXY = bmm_fp32(query_KXD, key_KYD.transpose(1, 2), self.rows.scale)
        queries = block.queries.stop - block.queries.start
        scores_KGQY = scores_KXY.view(len(scores_KXY), -1, queries, scores_KXY.shape[2])
        if self.bias_HLL is not None:
            block_bias = self.bias_HLL[:, block.query_positions, block.key_positions]
            scores_KGQY += block_bias.reshape(scores_KGQY.shape)
        if self.rows.causal:
            self._mask(scores_KGQY)
        weights_KXY = torch.softmax(scores_KXY, -1).to(query_KXD.dtype)
        if self.masks is None:
            return weights_KXY, None
        mask_KXY = self.masks.draw(weights_KXY, self.rows.dropout)
        return weights_KXY, mask_KXY.div_(keep_probability(self.rows.dropout))

    def _mask(self, scores_KGQY: Tensor) -> None:
        """Add -inf to the scores of masked keys; the last query's own key is the last key."""
        queries, keys = scores_KGQY.shape[2:]
        scores_KGQY[..., keys - queries :].add_(self.triangle_QQ[:queries, :queries])
        window = self.rows.window
        if window is not None and keys > window:  # each query's first visible key is one further
            scores_KGQY.add_(scores_KGQY.new_full((queries, keys), float("-inf")).tril(keys - queries - window))


def _scaled_product(left: Tensor, right: Tensor, scale: float) -> Tensor:
    return torch.baddbmm(left[:, :1, :1], left, right, beta=0, alpha=scale)


def _stack(x_QHD: Tensor, key_heads: int) -> Tensor:
    """Concatenate the query heads that share a key head by rows."""
    queries, heads, size = x_QHD.shape
    grouped = x_QHD.view(queries, key_heads, heads // key_heads, size).permute(1, 2, 0, 3)
    return grouped.reshape(key_heads, -1, size)


def _unstack(x_KXD: Tensor, out_QHD: Tensor) -> None:
    queries, heads, size = out_QHD.shape
    key_heads = len(x_KXD)
    out_QHD.view(queries, key_heads, heads // key_heads, size).copy_(
        x_KXD.view(key_heads, -1, queries, size).permute(2, 0, 1, 3)
    )
