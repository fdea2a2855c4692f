"""Attention of packed rows is scaled_dot_product_attention of each row alone, and so are its gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from luthier.layers import row_attention as module
from luthier.layers.row_attention import Rows, row_attention


def by_row(query: Tensor, key: Tensor, value: Tensor, rows: Rows) -> Tensor:
    found = []
    for q, k, v in zip(*(x.split(rows.lengths) for x in (query, key, value)), strict=True):
        places = torch.arange(len(q))
        seen = places[:, None] >= places[None]
        if rows.window is not None:
            seen &= places[:, None] - places[None] < rows.window
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
        attended = F.scaled_dot_product_attention(q, k, v, seen, scale=rows.scale, enable_gqa=True)
        found.append(attended[0].transpose(0, 1))
    return torch.cat(found)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=4), st.sampled_from([1, 2, 3]), st.sampled_from([1, 2, 4]),
    st.sampled_from([None, 1, 5, 16, 64]), st.sampled_from([3, 8, 128]),
)  # fmt: skip
def test_equals_each_row_alone(
    lengths: list[int], key_heads: int, groups: int, window: int | None, block: int
) -> None:
    torch.manual_seed(sum(lengths))
    rows, tokens = Rows(tuple(lengths), 0.3, window), sum(lengths)
    query = torch.randn(tokens, key_heads * groups, 4, requires_grad=True)
    key, value = (torch.randn(tokens, key_heads, 4, requires_grad=True) for _ in range(2))
    grad = torch.randn(tokens, key_heads * groups, 4)
    expected = by_row(query, key, value, rows)
    wanted = torch.autograd.grad(expected, (query, key, value), grad)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK", block)
        found = row_attention(query, key, value, rows)
        got = torch.autograd.grad(found, (query, key, value), grad)
    torch.testing.assert_close(found, expected)
    for mine, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_large_scores_are_not_rounded_to_bf16() -> None:
    """Scores near 100 differ by less than bf16 can tell apart there."""
    query = torch.full((2, 1, 2), 10.0).bfloat16()
    key = torch.tensor([[[5.0, 5.0]], [[5.0, 5.0234375]]]).bfloat16()
    value = torch.tensor([[[0.0, 0.0]], [[1.0, 1.0]]]).bfloat16()
    rows = Rows((2,), 1.0)
    exact = by_row(query.double(), key.double(), value.double(), rows)
    found = row_attention(query, key, value, rows)
    torch.testing.assert_close(found.double(), exact, rtol=1e-2, atol=1e-2)
