"""Attention of packed rows is scaled_dot_product_attention of each row alone, and so are its gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from luthier.layers import row_attention as module
from luthier.layers.row_attention import AttentionSpec, row_attention


def by_row(query: Tensor, key: Tensor, value: Tensor, rows: AttentionSpec, bias: Tensor | None = None) -> Tensor:
    found = []
    sources = rows.source_lengths or rows.lengths
    for q, k, v in zip(query.split(rows.lengths), key.split(sources), value.split(sources), strict=True):
        mask = torch.zeros(len(q), len(k), dtype=q.dtype)
        if rows.causal:
            distance = torch.arange(len(q))[:, None] - torch.arange(len(k))[None]
            hidden = distance < 0 if rows.window is None else (distance < 0) | (distance >= rows.window)
            mask = mask.masked_fill(hidden, float("-inf"))
        if bias is not None:
            mask = mask + bias[:, : len(q), : len(k)]
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
        attended = F.scaled_dot_product_attention(q, k, v, mask, scale=rows.scale, enable_gqa=True)
        found.append(attended[0].transpose(0, 1))
    return torch.cat(found)


LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=4)


@settings(max_examples=40, deadline=None)
@given(
    LENGTHS, st.sampled_from([1, 2, 3]), st.sampled_from([1, 2, 4]), st.sampled_from([None, 1, 5, 16, 64]),
    st.sampled_from([3, 8, 128]), st.booleans(),
)  # fmt: skip
def test_equals_each_row_alone(
    lengths: list[int], key_heads: int, groups: int, window: int | None, block: int, biased: bool
) -> None:
    torch.manual_seed(sum(lengths))
    rows, heads = AttentionSpec(lengths=tuple(lengths), scale=0.3, window=window), key_heads * groups
    bias = torch.randn(heads, max(lengths), max(lengths), requires_grad=True) if biased else None
    compare(rows, heads, key_heads, bias, block)


@settings(max_examples=30, deadline=None)
@given(st.data(), LENGTHS, st.sampled_from([3, 8, 128]))
def test_rows_read_their_own_sources_whole(data: st.DataObject, lengths: list[int], block: int) -> None:
    sources = data.draw(st.lists(st.integers(1, 40), min_size=len(lengths), max_size=len(lengths)))
    torch.manual_seed(sum(lengths))
    compare(
        AttentionSpec(lengths=tuple(lengths), scale=0.3, window=None, causal=False, source_lengths=tuple(sources)),
        4,
        2,
        None,
        block,
    )
    bias = torch.randn(4, max(lengths), max(lengths), requires_grad=True)
    compare(AttentionSpec(lengths=tuple(lengths), scale=1.0, window=None, causal=False), 4, 4, bias, block)


def compare(rows: AttentionSpec, heads: int, key_heads: int, bias: Tensor | None, block: int) -> None:
    query = torch.randn(sum(rows.lengths), heads, 4, requires_grad=True)
    sources = sum(rows.source_lengths or rows.lengths)
    key, value = (torch.randn(sources, key_heads, 4, requires_grad=True) for _ in range(2))
    inputs = (query, key, value) if bias is None else (query, key, value, bias)
    grad = torch.randn_like(query)
    expected = by_row(query, key, value, rows, bias)
    wanted = torch.autograd.grad(expected, inputs, grad)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK", block)
        found = row_attention(query, key, value, rows, bias)
        got = torch.autograd.grad(found, inputs, grad)
    torch.testing.assert_close(found, expected)
    for mine, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_dropout_drops_its_share_and_its_gradient_is_that_of_the_same_masks() -> None:
    rows = AttentionSpec(lengths=(150, 30), scale=0.5, dropout=0.25)
    torch.manual_seed(0)
    query, key, value = (torch.randn(180, 2, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))

    def drawn(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        torch.manual_seed(7)
        return row_attention(query, key, value, rows)

    assert torch.equal(drawn(query, key, value), drawn(query, key, value))
    ones = torch.ones_like(value)
    share = drawn(query, key, ones)
    assert share.mean().item() == pytest.approx(1.0, abs=0.05)
    assert share.std() > 0.02
    torch.manual_seed(8)
    assert not torch.equal(row_attention(query, key, ones, rows), share)
    direction = torch.randn_like(query)
    grads = torch.autograd.grad(drawn(query, key, value).square().sum(), (query, key, value))
    along = sum((grad * direction).sum() for grad in grads)
    step = 3e-3  # scores are in fp32
    ahead, behind = (drawn(*(x + sign * step * direction for x in (query, key, value))) for sign in (1, -1))
    slope = (ahead.square().sum() - behind.square().sum()) / (2 * step)
    torch.testing.assert_close(along, slope, rtol=1e-2, atol=1e-2)


def test_large_scores_are_not_rounded_to_bf16() -> None:
    """Scores near 100 differ by less than bf16 can tell apart there."""
    query = torch.full((2, 1, 2), 10.0).bfloat16()
    key = torch.tensor([[[5.0, 5.0]], [[5.0, 5.0234375]]]).bfloat16()
    value = torch.tensor([[[0.0, 0.0]], [[1.0, 1.0]]]).bfloat16()
    rows = AttentionSpec(lengths=(2,), scale=1.0)
    exact = by_row(query.double(), key.double(), value.double(), rows)
    found = row_attention(query, key, value, rows)
    torch.testing.assert_close(found.double(), exact, rtol=1e-2, atol=1e-2)
