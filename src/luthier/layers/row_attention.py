"""Causal attention of packed rows by batched matrix products, for the CPU.

    rows       | a a a | b b |         each row over itself alone
    a row      queries in blocks; a block sees the keys up to its own end (and no further back than the window)
    heads      the G query heads of a key head are stacked, so keys and values are never repeated

On CPUs it is faster than the flash kernel forward (the rows are short) and far faster backward. Nothing but queries,
keys and values is kept; the weights are computed again. Its plain twin is scaled_dot_product_attention
(tests/layers/test_row_attention.py).

Shapes: T tokens, H heads, K key/value heads, G = H / K, D head size, L queries of a block, X = G * L, S keys it sees.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

BLOCK = 128  # queries at a time: of a long row, half of what causality hides is never computed


@dataclass(frozen=True, slots=True)
class Rows:
    """Where the rows lie, how scores are scaled, and how far back a token sees (None: all of its row)."""

    lengths: tuple[int, ...]
    scale: float
    window: int | None = None

    def blocks(self) -> Iterator[tuple[slice, slice]]:
        """Queries and the keys they see, as places among all tokens."""
        start = 0
        for length in self.lengths:
            for first in range(0, length, BLOCK):
                end = min(first + BLOCK, length)
                seen = 0 if self.window is None else max(0, first - self.window + 1)
                yield slice(start + first, start + end), slice(start + seen, start + end)
            start += length


def row_attention(query_THD: Tensor, key_TKD: Tensor, value_TKD: Tensor, rows: Rows) -> Tensor:
    """Attention of each row over itself (T, H, D), differentiable in queries, keys and values."""
    apply: Any = _RowAttention.apply
    attended: Tensor = apply(query_THD, key_TKD, value_TKD, rows)
    return attended


class _RowAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query_THD: Tensor, key_TKD: Tensor, value_TKD: Tensor, rows: Rows) -> Tensor:
        ctx.save_for_backward(query_THD, key_TKD, value_TKD)
        ctx.rows = rows
        attended_THD = torch.empty_like(query_THD)
        masks = _Masks(rows.window, query_THD)
        for queries, keys in rows.blocks():
            key_KSD, value_KSD = key_TKD[keys].transpose(0, 1), value_TKD[keys].transpose(0, 1)
            query_KXD = _stack(query_THD[queries], len(key_KSD))
            weights_KXS = _weights(query_KXD, key_KSD, queries.stop - queries.start, masks, rows.scale)
            _unstack(weights_KXS @ value_KSD, attended_THD[queries])
        return attended_THD

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        query_THD, key_TKD, value_TKD = ctx.saved_tensors
        grad_THD, rows = outputs[0], ctx.rows
        # Blocks of one row add to the same keys, in fp32.
        wide = torch.float32 if max(rows.lengths) > BLOCK else key_TKD.dtype
        grad_query, grad_key = torch.empty_like(query_THD), torch.zeros_like(key_TKD, dtype=wide)
        grad_value = torch.zeros_like(grad_key)
        masks = _Masks(rows.window, query_THD)
        for queries, keys in rows.blocks():
            key_KSD, value_KSD = key_TKD[keys].transpose(0, 1), value_TKD[keys].transpose(0, 1)
            query_KXD, grad_KXD = (_stack(x_THD[queries], len(key_KSD)) for x_THD in (query_THD, grad_THD))
            weights_KXS = _weights(query_KXD, key_KSD, queries.stop - queries.start, masks, rows.scale)
            grad_value[keys] += (weights_KXS.transpose(1, 2) @ grad_KXD).transpose(0, 1)
            grad_weights = grad_KXD @ value_KSD.transpose(1, 2)
            scores_KXS = torch._softmax_backward_data(grad_weights, weights_KXS, -1, weights_KXS.dtype)
            _unstack(_scaled_product(scores_KXS, key_KSD, rows.scale), grad_query[queries])
            grad_key[keys] += _scaled_product(scores_KXS.transpose(1, 2), query_KXD, rows.scale).transpose(0, 1)
        return grad_query, grad_key.to(key_TKD.dtype), grad_value.to(key_TKD.dtype), None


class _Masks:
    """What is added to a block's scores: -inf where a query must not see a key."""

    def __init__(self, window: int | None, like: Tensor) -> None:
        self.window = window
        self.triangle_LL = torch.full((BLOCK, BLOCK), float("-inf"), device=like.device).triu(1)

    def hide(self, scores_KXS: Tensor, queries: int) -> None:
        """Write over the scores of `queries` tokens that end where their keys end."""
        keys = scores_KXS.shape[2]
        by_query = scores_KXS.view(len(scores_KXS), -1, queries, keys)
        by_query[..., keys - queries :].add_(self.triangle_LL[:queries, :queries])
        if self.window is not None and keys > self.window:  # row by row, the first key that is seen moves one further
            unseen = scores_KXS.new_full((queries, keys), float("-inf")).tril(keys - queries - self.window)
            by_query.add_(unseen)


def _weights(query_KXD: Tensor, key_KSD: Tensor, queries: int, masks: _Masks, scale: float) -> Tensor:
    """Softmax of the scores, which are kept in fp32: rounded to bf16, scores of 100 would be off by a quarter."""
    scores_KXS = _scaled_product(query_KXD.float(), key_KSD.transpose(1, 2).float(), scale)
    masks.hide(scores_KXS, queries)
    return torch.softmax(scores_KXS, -1).to(query_KXD.dtype)


def _scaled_product(left: Tensor, right: Tensor, scale: float) -> Tensor:
    return torch.baddbmm(left[:, :1, :1], left, right, beta=0, alpha=scale)


def _stack(x_LHD: Tensor, key_heads: int) -> Tensor:
    """The heads that share a key head, one under the other."""
    length, heads, size = x_LHD.shape
    grouped = x_LHD.view(length, key_heads, heads // key_heads, size).permute(1, 2, 0, 3)
    return grouped.reshape(key_heads, -1, size)


def _unstack(x_KXD: Tensor, into_LHD: Tensor) -> None:
    length, heads, size = into_LHD.shape
    key_heads = len(x_KXD)
    into_LHD.view(length, key_heads, heads // key_heads, size).copy_(
        x_KXD.view(key_heads, -1, length, size).permute(2, 0, 1, 3)
    )
