"""Attention over packed rows, by itself; tests/architectures/ proves it inside of every model that claims it."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from luthier.layers.attention import packed_attention


def test_grouped_heads_attend_like_repeated_ones() -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(1, 4, 9, 8), torch.randn(1, 2, 9, 8), torch.randn(1, 2, 9, 8)
    module = torch.nn.Module()
    grouped, _ = packed_attention(module, query, key, value, None, row_lengths=(5, 4))
    repeated, _ = packed_attention(
        module, query, key.repeat_interleave(2, 1), value.repeat_interleave(2, 1), None, row_lengths=(5, 4)
    )
    torch.testing.assert_close(grouped, repeated)


def _inputs(tokens: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 1, 4, tokens, 8).unbind(0)
    return query, key, value


def test_a_window_hides_what_is_further_back() -> None:
    query, key, value = _inputs(9)
    module = torch.nn.Module()
    found, _ = packed_attention(module, query, key, value, None, row_lengths=(9,), sliding_window=3)
    places = torch.arange(9)
    distance = places[:, None] - places[None, :]
    visible = (distance >= 0) & (distance < 3)
    torch.testing.assert_close(found, F.scaled_dot_product_attention(query, key, value, visible).transpose(1, 2))
    wide, _ = packed_attention(module, query, key, value, None, row_lengths=(9,), sliding_window=9)
    whole = F.scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2)
    torch.testing.assert_close(wide, whole)


def test_a_capped_score_stays_below_its_cap() -> None:
    query, key, value = _inputs(6)
    module = torch.nn.Module()
    found, _ = packed_attention(module, query, key, value, None, row_lengths=(6,), softcap=0.5, scaling=1.0)
    scores = 0.5 * torch.tanh(query @ key.transpose(2, 3) / 0.5)
    weights = scores.masked_fill(torch.ones(6, 6).triu(1).bool(), float("-inf")).softmax(-1)
    torch.testing.assert_close(found, (weights @ value).transpose(1, 2))


def test_cross_attention_sees_its_own_source_alone() -> None:
    query, _, _ = _inputs(5)
    _, key, value = _inputs(7)
    module = torch.nn.Module()
    module.is_causal = False  # type: ignore[assignment]
    found, _ = packed_attention(
        module, query, key, value, None, row_lengths=(2, 3), source_lengths=(4, 3), position_bias=torch.zeros(())
    )
    first = F.scaled_dot_product_attention(query[:, :, :2], key[:, :, :4], value[:, :, :4])
    second = F.scaled_dot_product_attention(query[:, :, 2:], key[:, :, 4:], value[:, :, 4:])
    torch.testing.assert_close(found, torch.cat([first, second], 2).transpose(1, 2))
