"""A model's decoder layers in the fused form: protocols that every model family implements.

    FusedLayer      project_qkv --> attention --> apply_output_and_mlp    packed rows, with autograd (decoder.py)
    InferenceLayer  the same steps with prepared weights                  token by token (cached_decoder.py)

The implementations are in decoder_layer.py and neox_layer.py.

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
    """One decoder layer. `window`: None if a token attends to its whole row so far; `checkpointed`: only the input is
    saved for the backward pass.
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
        """Queries (T, H, D), keys and values (T, K, D), and the `x_TD` to pass to `apply_output_and_mlp`."""

    def apply_output_and_mlp(self, attended_THD: Tensor, x_TD: Tensor, dtype: torch.dtype) -> Tensor:
        """The layer's output (T, D) from the attention's result."""

    def for_inference(self, dtype: torch.dtype, packed: bool) -> InferenceLayer:
        """The layer in its present state with prepared weights, without gradients; `packed`: see projection.py."""


class InferenceLayer(Protocol):
    """A layer with prepared weights, without dropout."""

    def project_qkv(self, x_TD: Tensor, angles: RotaryAngles) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (T, H, D), keys and values (T, K, D)."""

    def apply_output_and_mlp(self, attended_THD: Tensor, x_TD: Tensor) -> Tensor:
        """The layer's output (T, D) from the attention's result."""


@dataclass(frozen=True, slots=True)
class FusedStack:
    """A model's layers and final norm (called with hidden states and an output dtype, differentiable); embedding and
    rotary angles are the model's own modules.
    """

    embed: nn.Module
    rotary: nn.Module
    layers: tuple[FusedLayer, ...]
    norm: Callable[[Tensor, torch.dtype], Tensor]
