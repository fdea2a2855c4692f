"""Rotary positions as transformers turns them, and back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.gpt_neox.modeling_gpt_neox import apply_rotary_pos_emb as neox_rotary
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from luthier.layers.rope import RotaryAngles, rotate, rotate_leading_


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 9), st.integers(1, 4), st.integers(1, 6))
def test_equals_the_plain_function_and_its_gradient(tokens: int, heads: int, half: int) -> None:
    torch.manual_seed(tokens)
    angle = torch.randn(1, tokens, half).repeat(1, 1, 2)
    cos, sin = angle.cos(), angle.sin()
    x = torch.randn(tokens, heads, 2 * half, requires_grad=True)
    query = x.transpose(0, 1)[None]
    expected = apply_rotary_pos_emb(query, query, cos, sin)[0][0].transpose(0, 1)
    angles = RotaryAngles.from_cos_sin(cos, sin)
    torch.testing.assert_close(rotate(x.detach(), angles), expected)
    grad = torch.randn_like(x)
    (wanted,) = torch.autograd.grad(expected, x, grad)
    torch.testing.assert_close(rotate(grad, angles.inverse()), wanted)


def test_the_model_s_own_sine_is_left_alone() -> None:
    sin = torch.ones(1, 2, 4)
    RotaryAngles.from_cos_sin(torch.ones(1, 2, 4), sin)
    assert torch.equal(sin, torch.ones(1, 2, 4))


@pytest.mark.parametrize("turned", [0, 2, 6])
def test_a_part_of_each_head_is_turned_in_place(turned: int) -> None:
    torch.manual_seed(0)
    angle = torch.randn(1, 5, turned // 2).repeat(1, 1, 2)
    x = torch.randn(2, 5, 3, 6)
    expected = torch.stack(neox_rotary(x[0][None], x[1][None], angle.cos(), angle.sin(), 2), 0)[:, 0]
    rotate_leading_(x, RotaryAngles.from_cos_sin(angle.cos(), angle.sin()))
    torch.testing.assert_close(x, expected)
