"""The layer norm and its gradients are those of nn.LayerNorm."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from luthier.layers.layer_norm import LayerNorm, layer_norm, layer_norm_backward


def plain_norm(size: int) -> nn.LayerNorm:
    plain = nn.LayerNorm(size, 1e-5)
    plain.weight.data.normal_()
    plain.bias.data.normal_()
    return plain


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(1, 24))
def test_equals_the_plain_module(tokens: int, size: int) -> None:
    torch.manual_seed(tokens * size)
    plain = plain_norm(size)
    x = torch.randn(tokens, size, requires_grad=True)
    grad = torch.randn(tokens, size)
    expected = plain(x)
    wanted = torch.autograd.grad(expected, (x, plain.weight, plain.bias), grad)
    norm = LayerNorm(plain.weight, plain.bias, 1e-5)
    found = norm(x, torch.float32)
    torch.testing.assert_close(found, expected)
    got = torch.autograd.grad(found, (x, plain.weight, plain.bias), grad)
    torch.testing.assert_close(got, wanted)


def test_only_what_is_wanted_is_computed() -> None:
    torch.manual_seed(0)
    plain, x, grad = plain_norm(8), torch.randn(3, 8), torch.randn(3, 8)
    norm = LayerNorm(plain.weight, plain.bias, 1e-5)
    _, moments = layer_norm(x, norm, torch.float32)
    both = layer_norm_backward(grad, x, norm, moments, (True, True))
    alone, weight, bias = layer_norm_backward(grad, x, norm, moments, (False, True))
    assert weight is None
    assert bias is not None
    torch.testing.assert_close((alone, bias), (both[0], both[2]))


def test_bf16_is_rounded_once() -> None:
    torch.manual_seed(0)
    plain, x = plain_norm(16), torch.randn(50, 16).bfloat16()
    norm = LayerNorm(plain.weight, plain.bias, 1e-5)
    exact = nn.functional.layer_norm(x.double(), (16,), plain.weight.double(), plain.bias.double(), 1e-5)
    assert torch.equal(layer_norm(x, norm, torch.bfloat16)[0], exact.float().bfloat16())
    assert torch.equal(layer_norm(x.float(), norm, torch.bfloat16)[0], exact.float().bfloat16())


def test_bf16_gradients_err_by_their_own_rounding_alone() -> None:
    torch.manual_seed(0)
    plain, x, grad = plain_norm(16), torch.randn(50, 16).bfloat16(), torch.randn(50, 16).bfloat16()
    norm = LayerNorm(plain.weight, plain.bias, 1e-5)
    for stream in (x, x.float()):
        _, moments = layer_norm(stream, norm, torch.bfloat16)
        found, *others = layer_norm_backward(grad, stream, norm, moments, (True, True))
        wide = x.double().requires_grad_()
        weight, bias = (p.detach().double().requires_grad_() for p in (plain.weight, plain.bias))
        exact = torch.autograd.grad(
            nn.functional.layer_norm(wide, (16,), weight, bias, 1e-5), (wide, weight, bias), grad.double()
        )
        assert found.dtype is stream.dtype
        torch.testing.assert_close(found, exact[0].to(stream.dtype), rtol=1e-2 if stream is x else 1e-4, atol=1e-4)
        for mine, theirs in zip(others, exact[1:], strict=True):
            assert mine is not None
            torch.testing.assert_close(mine.double(), theirs, rtol=1e-4, atol=1e-4)
