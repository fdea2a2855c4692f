"""A model's decoder layers as Luthier's fused layers hold them: the same few doors for every family.

    packed rows (decoder.py)          queries --> attention --> rest             with a graph
    token by token (decode.py)        the same, of a layer whose weights are prepared once

What a layer is made of only its family knows (decoder_layer.py, neox_layer.py).

Shapes: T tokens, D hidden size (of a head: head size), H heads, K key/value heads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from luthier.layers.linear import Linear
from luthier.layers.rope import RotaryAngles


class FusedLayer(Protocol):
    """One decoder layer's weights and numbers. `window` is None where a token sees all of its row before it;
    `recomputed`: nothing is kept for the backward pass but the layer's input.
    """

    @property
    def scale(self) -> float: ...

    @property
    def window(self) -> int | None: ...

    @property
    def checkpointed(self) -> bool: ...

    @property
    def linear_layers(self) -> tuple[Linear, ...]:
        """All linear layers."""

    def project_qkv(
        self, x_TD: Tensor, angles: RotaryAngles, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Queries (T, H, D), keys and values (T, K, D), and `x_TD` as `rest` is to be given it."""

    def apply_output_and_mlp(self, attended_THD: Tensor, x_TD: Tensor, dtype: torch.dtype) -> Tensor:
        """The layer's output (T, D) from what its queries found."""

    def for_inference(self, dtype: torch.dtype, packed: bool) -> InferenceLayer:
        """The layer in its present state, to be run many times without gradients. `packed`: see projection.py."""


class InferenceLayer(Protocol):
    """A layer with its weights laid out, without dropout."""

    def project_qkv(self, x_TD: Tensor, angles: RotaryAngles) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (T, H, D), keys and values (T, K, D)."""

    def apply_output_and_mlp(self, attended_THD: Tensor, x_TD: Tensor) -> Tensor:
        """The layer's output (T, D) from what its queries found."""


@dataclass(frozen=True, slots=True)
class FusedStack:
    """All layers of a model and the norm behind them, which gives its input normed in a type, differentiable;
    embedding and rotary angles are the model's own modules.
    """

    embed: nn.Module
    rotary: nn.Module
    layers: tuple[FusedLayer, ...]
    norm: Callable[[Tensor, torch.dtype], Tensor]
