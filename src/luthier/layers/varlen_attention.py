"""Attention of packed rows by torch's varlen kernel (FlashAttention-2, Dao 2023, arXiv:2307.08691), for GPUs.

    a GPU, bf16 or fp16, no bias, no dropout    the kernel, if its probe passed
    everything else                             row_attention

The first call for a GPU, type and shape of heads probes the kernel on a few rows: its output and gradients must be
row_attention's within TOLERANCE. A torch without the kernel, or with another signature of it, fails the probe and is
not an error. Shapes: as in row_attention.py.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import accumulate

import torch
from torch import Tensor

from luthier.layers.row_attention import AttentionSpec, row_attention

DTYPES = (torch.bfloat16, torch.float16)
TOLERANCE = 0.02  # relative to the norm; both round to 8 bits or more
_PROBE_LENGTHS = (5, 130, 64)  # rows shorter and longer than a block of row_attention


def attend_rows(
    query_THD: Tensor, key_SKD: Tensor, value_SKD: Tensor, rows: AttentionSpec, bias_HLL: Tensor | None = None
) -> Tensor:
    """Attention of each row (T, H, D) by the kernel if it can be used; the contract is row_attention's."""
    if bias_HLL is None and can_use_varlen_kernel(query_THD, key_SKD, rows):
        return varlen_attention(query_THD, key_SKD, value_SKD, rows)
    return row_attention(query_THD, key_SKD, value_SKD, rows, bias_HLL)


def can_use_varlen_kernel(query_THD: Tensor, key_SKD: Tensor, rows: AttentionSpec) -> bool:
    """Whether the kernel can attend these rows."""
    heads = (query_THD.shape[1], key_SKD.shape[1], query_THD.shape[2])
    return not rows.dropout and not kernel_unavailable_reason(query_THD.device, query_THD.dtype, heads)


def describe_attention(device: torch.device, dtype: torch.dtype, heads: tuple[int, int, int]) -> str:
    """The implementation of attention on a GPU, for the user; empty on a CPU, which has only one."""
    if device.type == "cpu":
        return ""
    reason = kernel_unavailable_reason(device, dtype, heads)
    return f", attention without torch's varlen kernel ({reason})" if reason else ", attention by torch's varlen kernel"


@lru_cache
def kernel_unavailable_reason(device: torch.device, dtype: torch.dtype, heads: tuple[int, int, int]) -> str:
    """Why the kernel is not used for H, K and D of `heads`; empty if its probe passed."""
    if device.type != "cuda":
        return f"none for {device.type}"
    if dtype not in DTYPES:
        return f"none for {dtype}"
    try:
        worst = max_relative_error(device, dtype, heads)
    except (ImportError, RuntimeError, TypeError, ValueError) as error:
        return str(error).partition("\n")[0]
    return "" if worst <= TOLERANCE else f"its result is {worst:.1%} off"


def max_relative_error(device: torch.device, dtype: torch.dtype, heads: tuple[int, int, int]) -> float:
    """The kernel's largest error against row_attention, in outputs and gradients, relative to their norm, with and
    without a window.
    """
    count, key_count, size = heads
    generator = torch.Generator().manual_seed(0)
    shapes = [(sum(_PROBE_LENGTHS), head_count, size) for head_count in (count, key_count, key_count, count)]
    query, key, value, grad = (torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes)
    worst = 0.0
    for window in (None, 40):
        rows = AttentionSpec(lengths=_PROBE_LENGTHS, scale=size**-0.5, window=window)
        results = []
        for attention in (varlen_attention, row_attention):
            leaves = [part.clone().requires_grad_() for part in (query, key, value)]
            with torch.enable_grad():
                attended = attention(leaves[0], leaves[1], leaves[2], rows)
                results.append([attended.detach(), *torch.autograd.grad(attended, leaves, grad)])
        for actual, expected in zip(*results, strict=True):
            worst = max(worst, ((actual.float() - expected.float()).norm() / expected.float().norm()).item())
    return worst


def varlen_attention(query_THD: Tensor, key_SKD: Tensor, value_SKD: Tensor, rows: AttentionSpec) -> Tensor:
    """Attention of each row (T, H, D) by the kernel, differentiable in all tensors."""
    from torch.nn.attention.varlen import varlen_attn

    sources = rows.source_lengths or rows.lengths
    keys_before = -1 if rows.window is None else rows.window - 1  # it counts the keys before the query's own
    attended = varlen_attn(
        query_THD, key_SKD, value_SKD, _starts(rows.lengths, query_THD.device), _starts(sources, query_THD.device),
        max(rows.lengths), max(sources), scale=rows.scale, window_size=(keys_before, 0) if rows.causal else (-1, -1),
        enable_gqa=True,
    )  # fmt: skip
    assert isinstance(attended, Tensor)
    return attended


@lru_cache(maxsize=8)
def _starts(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    """int32 (R+1,): where each row starts, and where the last one ends; the same for all layers of a batch."""
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)
