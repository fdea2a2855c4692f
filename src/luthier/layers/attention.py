"""Attention over packed rows; no row attends to another.

    rows      | a a a a | b b | c c c |        one sequence of T tokens, no padding
    attention within each row; in cross-attention, over the row's own source

It is registered with transformers under `PACKED_ATTENTION` and receives the row lengths as a keyword argument,
so no T x T mask is built and rows are not inferred from position ids. The reference is the same model called
once per row (tests/layers/test_attention.py, tests/architectures/).

Shapes: B batch (1 when packed), H heads, K key/value heads, T tokens, L longest row, D head size.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from luthier.layers.row_attention import AttentionSpec
from luthier.layers.varlen_attention import attend_rows, can_use_varlen_kernel

PACKED_ATTENTION = "luthier_packed"

# Architectures whose packed rows are tested to equal the rows run one by one (tests/architectures/test_forward.py).
PACKABLE_ARCHITECTURES = frozenset(
    {
        "GPT2LMHeadModel", "GPTNeoXForCausalLM", "Gemma2ForCausalLM", "Gemma3ForCausalLM", "GemmaForCausalLM",
        "LlamaForCausalLM", "MistralForCausalLM", "MixtralForCausalLM", "Phi3ForCausalLM", "PhiForCausalLM",
        "Qwen2ForCausalLM", "Qwen3ForCausalLM", "T5ForConditionalGeneration",
    }
)  # fmt: skip


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

    It also uses these keywords of transformers: `sliding_window`, `softcap` on the scores (Gemma 2), `position_bias`
    (1, H, L, L) added to them (T5), and `source_lengths`, the row lengths of the keys in cross-attention. Without a
    softcap, a CPU computes it with row_attention, and a GPU without a bias with the varlen kernel if its probe passed.
    """
    lengths: tuple[int, ...] = context["row_lengths"]
    causal: bool = getattr(module, "is_causal", True)
    source_lengths: tuple[int, ...] | None = context.get("source_lengths") if not causal else None
    bias = None if source_lengths else context.get("position_bias")
    window: int | None = context.get("sliding_window")
    softcap: float | None = context.get("softcap")
    on_cpu = query_BHTD.device.type == "cpu"
    if softcap is None and (on_cpu or bias is None):
        scale = query_BHTD.shape[-1] ** -0.5 if scaling is None else scaling
        rows = AttentionSpec(
            lengths=lengths, scale=scale, window=window if causal else None, causal=causal,
            source_lengths=source_lengths or (), dropout=dropout,
        )  # fmt: skip
        query, key, value = (_in_compute_type(x_BHTD) for x_BHTD in (query_BHTD, key_BKTD, value_BKTD))
        if on_cpu or can_use_varlen_kernel(query, key, rows):
            with torch.autocast(query.device.type, enabled=False):
                return attend_rows(query, key, value, rows, None if bias is None else bias[0])[None], None
    groups = query_BHTD.shape[1] // key_BKTD.shape[1]
    if groups > 1:
        key_BKTD = key_BKTD.repeat_interleave(groups, dim=1)
        value_BKTD = value_BKTD.repeat_interleave(groups, dim=1)
    key_lengths = source_lengths or lengths
    rows_qkv = zip(
        query_BHTD.split(lengths, dim=2), key_BKTD.split(key_lengths, dim=2), value_BKTD.split(key_lengths, dim=2),
        strict=True,
    )  # fmt: skip
    attended = []
    for query, key, value in rows_qkv:
        mask = _mask(query.shape[2], causal, window, bias, query)
        if softcap is None:
            whole = causal and mask is None
            attended.append(
                F.scaled_dot_product_attention(query, key, value, mask, dropout, is_causal=whole, scale=scaling)
            )
        else:
            attended.append(_softcapped_attention(query, key, value, mask, dropout, scaling, softcap))
    return torch.cat(attended, dim=2).transpose(1, 2).contiguous(), None


def _in_compute_type(x_BHTD: Tensor) -> Tensor:
    """The sequence as (T, H, D) in one dtype: under autocast rotary angles leave fp32 queries beside bf16 values."""
    device = x_BHTD.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x_BHTD.dtype
    return x_BHTD[0].transpose(0, 1).to(dtype)


def _mask(length: int, causal: bool, window: int | None, bias: Tensor | None, like: Tensor) -> Tensor | None:
    """The mask added to a row's scores; None when full or causal attention needs none."""
    span = length if window is None else min(window, length)
    if bias is None and span == length:
        return None
    mask = like.new_zeros(()) if bias is None else bias[:, :, :length, :length].to(like.dtype)
    if not causal:
        return mask
    positions = torch.arange(length, device=like.device)
    distance = positions[:, None] - positions[None, :]
    return mask.masked_fill((distance < 0) | (distance >= span), float("-inf"))


def _softcapped_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float, scaling: float | None, cap: float
) -> Tensor:
    """Attention with scores cap * tanh(score / cap), causal when `mask` is None."""
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    scores = cap * torch.tanh(scores / cap)
    if mask is None:
        mask = torch.full(scores.shape[-2:], float("-inf"), dtype=scores.dtype, device=scores.device).triu(1)
    weights = F.softmax(scores + mask, dim=-1, dtype=torch.float32).to(query.dtype)
    return F.dropout(weights, dropout) @ value


AttentionInterface.register(PACKED_ATTENTION, packed_attention)
