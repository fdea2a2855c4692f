"""A stack of decoder layers token by token: prompts into slots, then one token for every row at work.

    fill    prompts packed side by side  -->  slots; hidden states at each prompt's last token
    step    one token of each row        -->  slots; hidden states at it

The same layers as decoder.py, without gradients, with the weights laid out once for many steps (projection.py). The
plain twin is transformers' own model with its cache (tests/weights/test_generate.py).

Shapes: T tokens of a pass, R rows at work, D hidden size, H heads, K key/value heads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from luthier.layers.linear import Linear
from luthier.layers.norm import rms_norm
from luthier.layers.projection import Projection
from luthier.layers.recognition import FastLayer, FastStack
from luthier.layers.rope import Angles, rotate
from luthier.layers.row_attention import Rows, row_attention
from luthier.layers.slots import Slots
from luthier.layers.swiglu import gated

Attend = Callable[[int, FastLayer, Tensor, Tensor, Tensor], Tensor]


class _Laid:
    """One layer's weights, laid out."""

    def __init__(self, layer: FastLayer, dtype: torch.dtype, packed: bool) -> None:
        self.numbers = layer
        self.qkv = Projection(layer.qkv, dtype, packed)
        self.o = Projection((layer.o,), dtype, packed)
        self.gate_up = Projection(layer.gate_up, dtype, packed)
        self.down = Projection((layer.down,), dtype, packed)


class Decoding:
    """A stack to be run many times as it stands now. `packed`: see projection.py."""

    def __init__(self, stack: FastStack, dtype: torch.dtype, packed: bool) -> None:
        self._stack = stack
        self._dtype = dtype
        self._layers = [_Laid(layer, dtype, packed) for layer in stack.layers]

    def slots(self, count: int) -> Slots:
        """Room for `count` rows at once."""
        return Slots(count, len(self._layers))

    def fill(self, slots: Slots, places: Sequence[int], ids_T: Tensor, lengths: Sequence[int]) -> Tensor:
        """Read prompts of `lengths` tokens, side by side in `ids_T`, into the slots at `places`; hidden states after
        the last norm at the last token of each.
        """
        positions_T = torch.cat([torch.arange(length, device=ids_T.device) for length in lengths])
        last_R = torch.tensor(list(accumulate(lengths)), device=ids_T.device) - 1

        def attend(number: int, layer: FastLayer, q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor) -> Tensor:
            slots.fill(number, places, k_TKD, v_TKD, lengths)
            return row_attention(q_THD, k_TKD, v_TKD.contiguous(), Rows(tuple(lengths), layer.scale, layer.window))

        hidden_RD = self._run(ids_T, positions_T, attend, last_R)
        slots.begin(places, lengths)
        return hidden_RD

    def step(self, slots: Slots, ids_R: Tensor) -> Tensor:
        """Append one token to each row at work; hidden states after the last norm at it."""

        def attend(number: int, layer: FastLayer, q_RHD: Tensor, k_RKD: Tensor, v_RKD: Tensor) -> Tensor:
            return slots.attend(number, q_RHD, k_RKD, v_RKD, layer.scale, layer.window)

        return self._run(ids_R, slots.begin_step(ids_R.device), attend, None)

    def _run(self, ids_T: Tensor, positions_T: Tensor, attend: Attend, wanted_R: Tensor | None) -> Tensor:
        with torch.autocast(ids_T.device.type, enabled=False):
            x_TD = self._stack.embed(ids_T[None])[0]
            angles = Angles.of(*self._stack.rotary(x_TD[None].to(self._dtype), position_ids=positions_T[None]))
            for number, laid in enumerate(self._layers):
                x_TD = self._layer(number, laid, x_TD, angles, attend, wanted_R)
            return rms_norm(x_TD, self._stack.norm, self._dtype)

    def _layer(
        self, number: int, laid: _Laid, x_TD: Tensor, angles: Angles, attend: Attend, wanted_R: Tensor | None
    ) -> Tensor:
        """The layer's output; of the last layer, at the wanted tokens only."""
        layer, dtype = laid.numbers, self._dtype
        q_THD, k_TKD, v_TKD = (
            y_TO.reshape(len(y_TO), -1, layer.head_size) for y_TO in laid.qkv(rms_norm(x_TD, layer.norm, dtype))
        )
        if layer.head_norms:
            q_THD, k_TKD = (
                rms_norm(x.flatten(0, 1), norm, dtype).view_as(x)
                for x, norm in zip((q_THD, k_TKD), layer.head_norms, strict=True)
            )
        attended_THD = attend(number, layer, rotate(q_THD, angles), rotate(k_TKD, angles), v_TKD)
        if wanted_R is not None and number == len(self._layers) - 1:
            attended_THD, x_TD = attended_THD.index_select(0, wanted_R), x_TD.index_select(0, wanted_R)
        (h_TD,) = laid.o(attended_THD.flatten(1), x_TD)
        gate_TI, up_TI = laid.gate_up(rms_norm(h_TD, layer.mlp_norm, dtype))
        (out_TD,) = laid.down(gated(gate_TI, up_TI, layer.activation), h_TD)
        return out_TD


def weights_of(stack: FastStack) -> list[Linear]:
    """All linear layers of a stack."""
    return [linear for layer in stack.layers for linear in (*layer.qkv, layer.o, *layer.gate_up, layer.down)]
