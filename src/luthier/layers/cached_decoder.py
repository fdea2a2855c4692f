"""A stack of decoder layers token by token: prompts into slots, then one token for every active row.

    fill    prompts packed side by side  -->  slots; hidden states at each prompt's last token
    step    one token of each row        -->  slots; hidden states at it

The same layers as decoder.py, without gradients, with the weights prepared once for many steps (projection.py). The
reference is transformers' own model with its cache (tests/weights/test_generate.py).

Shapes: T tokens of a pass, R active rows, D hidden size, H heads, K key/value heads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from luthier.layers.fused_stack import FusedStack, InferenceLayer
from luthier.layers.kv_cache import CacheSlots
from luthier.layers.linear import Linear
from luthier.layers.rope import RotaryAngles
from luthier.layers.row_attention import AttentionSpec
from luthier.layers.varlen_attention import attend_rows

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]


class CachedDecoder:
    """A stack to be run many times in its present state. `packed`: see projection.py."""

    def __init__(self, stack: FusedStack, dtype: torch.dtype, packed: bool) -> None:
        self._stack = stack
        self._dtype = dtype
        self._layers = [layer.for_inference(dtype, packed) for layer in stack.layers]

    def slots(self, count: int) -> CacheSlots:
        """Room for `count` rows at once."""
        return CacheSlots(count, len(self._layers))

    def fill(self, slots: CacheSlots, places: Sequence[int], ids_T: Tensor, lengths: Sequence[int]) -> Tensor:
        """Read prompts of `lengths` tokens, side by side in `ids_T`, into the slots at `places`; hidden states after
        the last norm at the last token of each.
        """
        positions_T = torch.cat([torch.arange(length, device=ids_T.device) for length in lengths])
        last_R = torch.tensor(list(accumulate(lengths)), device=ids_T.device) - 1

        def attend(number: int, q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor) -> Tensor:
            layer = self._stack.layers[number]
            slots.fill(number, places, k_TKD, v_TKD, lengths)
            spec = AttentionSpec(lengths=tuple(lengths), scale=layer.scale, window=layer.window)
            return attend_rows(q_THD, k_TKD, v_TKD.contiguous(), spec)

        hidden_RD = self._run(ids_T, positions_T, attend, last_R)
        slots.begin(places, lengths)
        return hidden_RD

    def step(self, slots: CacheSlots, ids_R: Tensor) -> Tensor:
        """Append one token to each active row; hidden states after the last norm at it."""

        def attend(number: int, q_RHD: Tensor, k_RKD: Tensor, v_RKD: Tensor) -> Tensor:
            layer = self._stack.layers[number]
            return slots.attend(number, q_RHD, k_RKD, v_RKD, layer.scale, layer.window)

        return self._run(ids_R, slots.begin_step(ids_R.device), attend, None)

    def _run(self, ids_T: Tensor, positions_T: Tensor, attend: Attend, wanted_R: Tensor | None) -> Tensor:
        with torch.autocast(ids_T.device.type, enabled=False):
            x_TD = self._stack.embed(ids_T[None])[0]
            cos_sin = self._stack.rotary(x_TD[None].to(self._dtype), position_ids=positions_T[None])
            angles = RotaryAngles.from_cos_sin(*cos_sin)
            for number, laid in enumerate(self._layers):
                x_TD = self._layer(number, laid, x_TD, angles, attend, wanted_R)
            return self._stack.norm(x_TD, self._dtype)

    def _layer(
        self, number: int, laid: InferenceLayer, x_TD: Tensor, angles: RotaryAngles, attend: Attend,
        wanted_R: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """The layer's output; of the last layer, at the wanted tokens only."""
        attended_THD = attend(number, *laid.project_qkv(x_TD, angles))
        if wanted_R is not None and number == len(self._layers) - 1:
            attended_THD, x_TD = attended_THD.index_select(0, wanted_R), x_TD.index_select(0, wanted_R)
        return laid.apply_output_and_mlp(attended_THD, x_TD)


def linear_layers_of(stack: FusedStack) -> list[Linear]:
    """All linear layers of a stack."""
    return [linear for layer in stack.layers for linear in layer.linear_layers]
