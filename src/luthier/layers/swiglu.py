"""The gated activation of the MLP (Shazeer 2020, arXiv:2002.05202): act(gate) * up, which the backward pass recomputes.

The reference is the product written out under autograd (tests/layers/test_swiglu.py).

Shapes: T tokens, I intermediate size.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_aten = torch.ops.aten


class Activation(NamedTuple):
    """A function of the gate, and its backward pass (gradient, gate)."""

    forward: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor, Tensor], Tensor]


SILU = Activation(F.silu, _aten.silu_backward)
GELU = Activation(F.gelu, _aten.gelu_backward)
GELU_TANH = Activation(partial(F.gelu, approximate="tanh"), partial(_aten.gelu_backward, approximate="tanh"))
_KNOWN = (SILU, GELU, GELU_TANH)


def match_activation(module: nn.Module) -> Activation | None:
    """The known activation that a module computes, by its output on a probe input; None if unknown."""
    gate = torch.linspace(-4, 4, 17)
    output: Tensor = module(gate)
    return next((activation for activation in _KNOWN if torch.equal(activation.forward(gate), output)), None)


def gated(gate_TI: Tensor, up_TI: Tensor, activation: Activation) -> Tensor:
    """act(gate) * up, without autograd."""
    return activation.forward(gate_TI).mul_(up_TI)


def gated_backward(
    grad_TI: Tensor, gate_TI: Tensor, up_TI: Tensor, active_TI: Tensor, activation: Activation
) -> tuple[Tensor, Tensor]:
    """Gradients of gate and up from that of the product; overwrites `grad_TI` and `active_TI` = act(gate)."""
    grad_up = active_TI.mul_(grad_TI)
    return activation.backward(grad_TI.mul_(up_TI), gate_TI), grad_up
