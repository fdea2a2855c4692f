"""Attention over rows laid side by side, none of which sees another.

    rows      | a a a a | b b | c c c |        one sequence of T tokens, no padding
    attention each row causal over itself alone

It is registered with transformers under `PACKED` and receives the row lengths as a keyword of the model's forward,
so no mask of T x T is ever built and no position trick has to be trusted. Its plain twin is the same model called
once per row (tests/layers/test_attention.py).

Shapes: B batch (1 when packed), H heads, K key/value heads, T tokens, D head size.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

PACKED = "luthier_packed"

# Architectures whose packed rows were proved equal to the rows alone (tests/layers/test_attention.py).
PACKS_CLEANLY = frozenset({"LlamaForCausalLM", "GPTNeoXForCausalLM", "GPT2LMHeadModel"})


def packed_attention(
    module: nn.Module,
    query_BHTD: Tensor,
    key_BKTD: Tensor,
    value_BKTD: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **context: Any,
) -> tuple[Tensor, None]:
    """Attend within each row of `context["row_lengths"]`; returns (B, T, H, D).

    A sliding window (`context["sliding_window"]`) is honoured in rows longer than it.
    """
    lengths: tuple[int, ...] = context["row_lengths"]
    window: int | None = context.get("sliding_window")
    groups = query_BHTD.shape[1] // key_BKTD.shape[1]
    if groups > 1:
        key_BKTD = key_BKTD.repeat_interleave(groups, dim=1)
        value_BKTD = value_BKTD.repeat_interleave(groups, dim=1)
    rows = zip(*(states.split(lengths, dim=2) for states in (query_BHTD, key_BKTD, value_BKTD)), strict=True)
    attended = [_attend_row(query, key, value, dropout, scaling, window) for query, key, value in rows]
    return torch.cat(attended, dim=2).transpose(1, 2).contiguous(), None


def _attend_row(
    query: Tensor, key: Tensor, value: Tensor, dropout: float, scaling: float | None, window: int | None
) -> Tensor:
    length = query.shape[2]
    if window is None or length <= window:
        return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True, scale=scaling)
    distance = torch.arange(length, device=query.device)[:, None] - torch.arange(length, device=query.device)[None, :]
    visible = (distance >= 0) & (distance < window)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=visible, dropout_p=dropout, scale=scaling)


AttentionInterface.register(PACKED, packed_attention)
