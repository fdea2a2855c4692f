"""A stack of decoder layers with a KV cache: prefill prompts into slots, then one token for every active row.

    fill    packed prompts               -->  slots; hidden states at each prompt's last token
    step    one token of each row        -->  slots; hidden states of that token

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
    """A stack with its weights prepared for many steps; `packed`: see projection.py."""

    def __init__(self, stack: FusedStack, dtype: torch.dtype, packed: bool) -> None:
        self._stack = stack
        self._dtype = dtype
        self._layers = [layer.for_inference(dtype, packed) for layer in stack.layers]

    def slots(self, count: int) -> CacheSlots:
        """A KV cache for `count` rows at once."""
        return CacheSlots(count, len(self._layers))

    def fill(self, slots: CacheSlots, slot_ids: Sequence[int], ids_T: Tensor, lengths: Sequence[int]) -> Tensor:
        """Prefill the slots `slot_ids` with packed prompts of `lengths` tokens; returns hidden states (R, D) after the
        last norm at the last token of each prompt.
        """
        positions_T = torch.cat([torch.arange(length, device=ids_T.device) for length in lengths])
        last_R = torch.tensor(list(accumulate(lengths)), device=ids_T.device) - 1

        def attend(index: int, q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor) -> Tensor:
            layer = self._stack.layers[index]
            slots.fill(index, slot_ids, k_TKD, v_TKD, lengths)
            spec = AttentionSpec(lengths=tuple(lengths), scale=layer.scale, window=layer.window)
            return attend_rows(q_THD, k_TKD, v_TKD.contiguous(), spec)

        hidden_RD = self._run(ids_T, positions_T, attend, last_R)
        slots.begin(slot_ids, lengths)
        return hidden_RD

    def step(self, slots: CacheSlots, ids_R: Tensor) -> Tensor:
        """Append one token to each active row; returns its hidden states (R, D) after the last norm."""

        def attend(index: int, q_RHD: Tensor, k_RKD: Tensor, v_RKD: Tensor) -> Tensor:
            layer = self._stack.layers[index]
            return slots.attend(index, q_RHD, k_RKD, v_RKD, layer.scale, layer.window)

        return self._run(ids_R, slots.begin_step(ids_R.device), attend, None)

    def _run(self, ids_T: Tensor, positions_T: Tensor, attend: Attend, output_R: Tensor | None) -> Tensor:
        with torch.autocast(ids_T.device.type, enabled=False):
            x_TD = self._stack.embed(ids_T[None])[0]
            cos_sin = self._stack.rotary(x_TD[None].to(self._dtype), position_ids=positions_T[None])
            angles = RotaryAngles.from_cos_sin(*cos_sin)
            for index, layer in enumerate(self._layers):
                x_TD = self._layer(index, layer, x_TD, angles, attend, output_R)
            return self._stack.norm(x_TD, self._dtype)

    def _layer(
        self, index: int, layer: InferenceLayer, x_TD: Tensor, angles: RotaryAngles, attend: Attend,
        output_R: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """The layer's output; for the last layer, only at tokens `output_R`."""
        attended_THD = attend(index, *layer.project_qkv(x_TD, angles))
        if output_R is not None and index == len(self._layers) - 1:
            attended_THD, x_TD = attended_THD.index_select(0, output_R), x_TD.index_select(0, output_R)
        return layer.apply_output_and_mlp(attended_THD, x_TD)


def linear_layers_of(stack: FusedStack) -> list[Linear]:
    """All linear layers of a stack."""
    return [linear for layer in stack.layers for linear in layer.linear_layers]
