"""The gated product and its gradients are autograd's, for each known activation."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.activations import ACT2FN

from luthier.layers.swiglu import GELU, GELU_TANH, SILU, gated, gated_backward, match_activation


@pytest.mark.parametrize(
    ("name", "known"),
    [("silu", SILU), ("swish", SILU), ("gelu", GELU), ("gelu_pytorch_tanh", GELU_TANH), ("relu", None)],
)
def test_an_activation_is_known_by_what_it_gives(name: str, known: object) -> None:
    assert match_activation(ACT2FN[name]) is known


@pytest.mark.parametrize("name", ["silu", "gelu", "gelu_pytorch_tanh"])
def test_equals_autograd(name: str) -> None:
    torch.manual_seed(0)
    module: nn.Module = ACT2FN[name]
    activation = match_activation(module)
    assert activation is not None
    gate, up = torch.randn(7, 5, requires_grad=True), torch.randn(7, 5, requires_grad=True)
    grad = torch.randn(7, 5)
    expected = module(gate) * up
    wanted = torch.autograd.grad(expected, (gate, up), grad)
    with torch.no_grad():
        torch.testing.assert_close(gated(gate, up, activation), expected)
        found = gated_backward(grad.clone(), gate, up, activation.forward(gate), activation)
    torch.testing.assert_close(found, wanted)
