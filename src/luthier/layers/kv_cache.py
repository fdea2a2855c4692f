"""A KV cache for generation: a fixed number of slots, each with the keys and values of one row.

    slots   | prompt prompt answer ...... |     entries beyond a row's length are ignored
            | prompt answer answer answer |     the capacity of all slots grows in blocks with the longest row

When a row ends, its slot is overwritten by the next row's prompt or by the last slot's row, so the active rows are
always in the first slots. In each step a slot's new token attends to its row so far. The reference is
scaled_dot_product_attention (tests/layers/test_kv_cache.py).

Shapes: S slots, R active rows (the first R slots), K key/value heads, G query heads of a key head, H = K * G heads,
C capacity in tokens, N tokens of the longest row, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

BLOCK = 64  # tokens


class CacheSlots:
    """The slots of all layers. `lengths` holds the tokens of each active row."""

    def __init__(self, slots: int, layers: int) -> None:
        self._slots = slots
        # After the first row: keys (S, K, D, C) in fp32, the layout of the product with a query, which takes half the
        # time of a transpose and cast in each step, at 1.5 times the memory in bf16. Values (S, K, C, D).
        self._keys: list[Tensor] = [torch.empty(0)] * layers
        self._values: list[Tensor] = [torch.empty(0)] * layers
        self.lengths: list[int] = []
        self._rows_R = self._positions_R = torch.empty(0)
        self._masks: dict[int | None, Tensor | None] = {}

    def fill(self, layer: int, slots: Sequence[int], key_TKD: Tensor, value_TKD: Tensor, rows: Sequence[int]) -> None:
        """Write prompts of `rows` tokens each, packed, into `slots`."""
        self._grow(layer, max(rows), value_TKD)
        start = 0
        for slot, length in zip(slots, rows, strict=True):
            tokens = slice(start, start + length)
            self._keys[layer][slot, :, :, :length] = key_TKD[tokens].permute(1, 2, 0)
            self._values[layer][slot, :, :length] = value_TKD[tokens].transpose(0, 1)
            start += length

    def begin(self, slots: Sequence[int], lengths: Sequence[int]) -> None:
        """Mark rows of these lengths, filled in all layers, as active; new slots come in their order."""
        for slot, length in zip(slots, lengths, strict=True):
            self.lengths[slot : slot + 1] = [length]

    def end(self, slot: int) -> None:
        """Free `slot`; the last active row moves there."""
        length = self.lengths.pop()
        last = len(self.lengths)
        if slot < last:
            for keys, values in zip(self._keys, self._values, strict=True):
                keys[slot, :, :, :length] = keys[last, :, :, :length]
                values[slot, :, :length] = values[last, :, :length]
            self.lengths[slot] = length

    def begin_step(self, device: torch.device) -> Tensor:
        """Lengthen every active row by one token; returns the tokens' positions (R,)."""
        self._positions_R = torch.tensor(self.lengths, device=device)
        self._rows_R = torch.arange(len(self.lengths), device=device)
        self.lengths = [length + 1 for length in self.lengths]
        self._masks = {}
        return self._positions_R

    def attend(
        self, layer: int, query_RHD: Tensor, key_RKD: Tensor, value_RKD: Tensor, scale: float, window: int | None
    ) -> Tensor:
        """Write the step's keys and values and attend (R, H, D) to each row so far, or to its last `window` tokens."""
        rows, longest = len(query_RHD), max(self.lengths)
        self._grow(layer, longest, value_RKD)
        keys, values = self._keys[layer], self._values[layer]
        keys[self._rows_R, :, :, self._positions_R] = key_RKD.float()
        values[self._rows_R, :, self._positions_R] = value_RKD
        query_BGD = query_RHD.view(rows * key_RKD.shape[1], -1, query_RHD.shape[2])
        key_BDN, value_BND = keys[:rows, ..., :longest].flatten(0, 1), values[:rows, :, :longest].flatten(0, 1)
        # In fp32, as in row_attention: rounded to bf16, scores of 100 would be off by a quarter.
        scores = torch.baddbmm(key_BDN[:, :1, :1], query_BGD.float(), key_BDN, beta=0, alpha=scale)
        mask = self._mask(longest, window)
        if mask is not None:
            scores.view(rows, -1, longest).add_(mask)
        return (torch.softmax(scores, -1).to(value_BND.dtype) @ value_BND).view_as(query_RHD)

    def _mask(self, longest: int, window: int | None) -> Tensor | None:
        """-inf where a row's token must not attend (R, 1, N); None where it may attend everywhere."""
        if window not in self._masks:
            token_N = torch.arange(longest, device=self._positions_R.device)
            last_R1 = self._positions_R[:, None]
            visible = token_N <= last_R1
            if window is not None:
                visible &= token_N > last_R1 - window
            added = torch.zeros(visible.shape, device=visible.device).masked_fill_(~visible, float("-inf"))[:, None]
            self._masks[window] = None if bool(visible.all()) else added
        return self._masks[window]

    def _grow(self, layer: int, needed: int, like_TKD: Tensor) -> None:
        current = self._values[layer].shape[2] if self._values[layer].dim() == 4 else 0
        if needed <= current:
            return
        capacity, (_, heads, size) = -(-needed // BLOCK) * BLOCK, like_TKD.shape
        # Zeros: entries beyond a row get weight 0, and 0 times an uninitialised NaN would be NaN.
        keys = like_TKD.new_zeros(self._slots, heads, size, capacity, dtype=torch.float32)
        values = like_TKD.new_zeros(self._slots, heads, capacity, size)
        if current:
            keys[..., :current], values[:, :, :current] = self._keys[layer], self._values[layer]
        self._keys[layer], self._values[layer] = keys, values
