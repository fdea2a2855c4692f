"""Layers that share an input give what nn.Linear and PEFT's LoRA round it give, and so do their gradients."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from luthier.layers import linear as module
from luthier.layers.linear import Linear, LoraMatrices, linear, linear_backward


def layer(inputs: int, outputs: int, bias: bool, adapter: bool, dropout: float = 0.0) -> Linear:
    def parameter(*shape: int, is_trainable: bool = True) -> Tensor:
        return torch.randn(*shape).requires_grad_(is_trainable)

    low_rank = LoraMatrices(parameter(2, inputs), parameter(outputs, 2), 1.5, dropout) if adapter else None
    held = not adapter
    return Linear(
        parameter(outputs, inputs, is_trainable=held), parameter(outputs, is_trainable=held) if bias else None, low_rank
    )


def plain(x: Tensor, of: Linear, mask: Tensor | None, keep: float) -> Tensor:
    y = torch.nn.functional.linear(x, of.weight_OI, of.bias_O)
    if of.adapter:
        read = x if mask is None else x * mask / keep
        y = y + of.adapter.scale * (read @ of.adapter.a_RI.t() @ of.adapter.b_OR.t())
    return y


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 9), st.integers(1, 6), st.lists(st.tuples(st.integers(1, 5), st.booleans(), st.booleans()),
    min_size=1, max_size=3), st.sampled_from([0.0, 0.4]), st.booleans(),
)  # fmt: skip
def test_equals_autograd(
    tokens: int, inputs: int, shapes: list[tuple[int, bool, bool]], dropout: float, onto: bool
) -> None:
    torch.manual_seed(tokens)
    layers = [layer(inputs, outputs, bias, adapter, dropout) for outputs, bias, adapter in shapes]
    x = torch.randn(tokens, inputs, requires_grad=True)
    added = torch.randn(tokens, shapes[0][0]) if onto and len(layers) == 1 else None
    with torch.no_grad():
        found, kept = linear(x, layers, added)
    masks = list(module._masks(x, layers, kept.seed))
    shares = list(module._keep_probabilities(layers))
    expected = [plain(x, of, mask, keep) for of, mask, keep in zip(layers, masks, shares, strict=True)]
    if added is not None:
        expected = [expected[0] + added]
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)

    grads = [torch.randn_like(y) for y in expected]
    trained = [p for of in layers for p in of.parameters if p is not None and p.requires_grad]
    wanted = torch.autograd.grad(expected, [x, *trained], grads)
    with torch.no_grad():
        grad_x, each = linear_backward(grads, x, layers, kept, wants_input=True)
    assert len(each) == 4 * len(layers)
    assert grad_x is not None
    got = [grad_x, *(grad for grad in each if grad is not None)]
    for mine, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def test_masks_drop_the_asked_share_and_differ_between_layers() -> None:
    torch.manual_seed(0)
    layers = [layer(64, 3, False, True, 0.25) for _ in range(2)]
    first, second = module._masks(torch.empty(1000, 64), layers, 7)
    again, _ = module._masks(torch.empty(1000, 64), layers, 7)
    assert first is not None
    assert second is not None
    assert again is not None
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert abs(first.mean().item() - 0.75) < 0.01
    assert set(first.unique().tolist()) == {0.0, 1.0}
    # Neighbours come from one random number; they must not agree more often than chance has it.
    assert abs((first[:, 0::4] * first[:, 1::4]).mean().item() - 0.75**2) < 0.01


def test_the_seed_comes_from_torchs_random_numbers_and_none_is_drawn_without_dropout() -> None:
    x, dropping, whole = torch.randn(8, 4), [layer(4, 3, False, True, 0.5)], [layer(4, 3, False, True)]
    with torch.no_grad():
        torch.manual_seed(3)
        first = linear(x, dropping)[0][0]
        torch.manual_seed(3)
        state = torch.get_rng_state()
        linear(x, whole)
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.equal(linear(x, dropping)[0][0], first)
        assert not torch.equal(linear(x, dropping)[0][0], first)


def test_a_frozen_weight_gets_no_gradient_and_a_wider_stream_keeps_its_type() -> None:
    of = layer(4, 3, False, True)
    x, stream = torch.randn(5, 4).bfloat16(), torch.randn(5, 3)
    with torch.no_grad():
        (y,), kept = linear(x, [of], stream)
        assert y.dtype is torch.float32
        grad_x, (weight, bias, a, b) = linear_backward([y.bfloat16()], x, [of], kept, wants_input=False)
    assert grad_x is None
    assert weight is None
    assert bias is None
    assert a is not None
    assert b is not None


def test_a_small_update_is_not_rounded_away_in_bf16() -> None:
    """An adapter's first steps move an output by less than bf16 can tell apart from it; on average they must show."""
    torch.manual_seed(0)
    x, weight = torch.randn(512, 64).bfloat16(), torch.randn(64, 64).bfloat16()
    x[:, 0] = 1.0
    a, b = torch.zeros(1, 64), torch.full((64, 1), 2.0**-7)  # outputs are near 8, where bf16 goes in steps of 2^-5
    a[0, 0] = 1.0
    without = linear(x, [Linear(weight)])[0][0]
    moved = linear(x, [Linear(weight, None, LoraMatrices(a, b, 1.0))])[0][0]
    shift = (moved.double() - without.double()).mean().item()
    assert abs(shift / 2.0**-7 - 1) < 0.1
