"""Keys and values of answers in the making: a fixed number of slots, each with the tokens of one row.

    slots   | prompt prompt answer ...... |     a row's length in tokens; what lies behind is not there
            | prompt answer answer answer |     room grows in blocks for all slots when the longest row needs it

Rows come and go: a slot is written over by the next row's prompt, or by the last slot's row, so that the active rows
are always the first ones. Step by step each slot's new token attends to its row so far. The reference is
scaled_dot_product_attention (tests/layers/test_kv_cache.py).

Shapes: S slots, R active rows (the first R slots), K key/value heads, G query heads of a key head, H = K * G heads,
C room in tokens, N tokens of the longest row, D head size.
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
        # Once there is a first row: keys (S, K, D, C) in fp32, as the product with a query reads them, which takes half
        # the time of turning and widening them in each step, at 1.5 times the memory in bf16. Values (S, K, C, D).
        self._keys: list[Tensor] = [torch.empty(0)] * layers
        self._values: list[Tensor] = [torch.empty(0)] * layers
        self.lengths: list[int] = []
        self._places_R = self._past_R = torch.empty(0)
        self._hidden: dict[int | None, Tensor | None] = {}

    def fill(self, layer: int, places: Sequence[int], key_TKD: Tensor, value_TKD: Tensor, rows: Sequence[int]) -> None:
        """Write prompts of `rows` tokens each, packed, into the slots at `places`."""
        self._make_room(layer, max(rows), value_TKD)
        start = 0
        for place, length in zip(places, rows, strict=True):
            tokens = slice(start, start + length)
            self._keys[layer][place, :, :, :length] = key_TKD[tokens].permute(1, 2, 0)
            self._values[layer][place, :, :length] = value_TKD[tokens].transpose(0, 1)
            start += length

    def begin(self, places: Sequence[int], lengths: Sequence[int]) -> None:
        """Rows of these lengths, filled in all layers, are active from now on; new slots come in their order."""
        for place, length in zip(places, lengths, strict=True):
            self.lengths[place : place + 1] = [length]

    def end(self, place: int) -> None:
        """The row at `place` is no longer active: the last one moves there."""
        length = self.lengths.pop()
        last = len(self.lengths)
        if place < last:
            for keys, values in zip(self._keys, self._values, strict=True):
                keys[place, :, :, :length] = keys[last, :, :, :length]
                values[place, :, :length] = values[last, :, :length]
            self.lengths[place] = length

    def begin_step(self, device: torch.device) -> Tensor:
        """Every active row gets one more token; its position (R,)."""
        self._past_R = torch.tensor(self.lengths, device=device)
        self._places_R = torch.arange(len(self.lengths), device=device)
        self.lengths = [length + 1 for length in self.lengths]
        self._hidden = {}
        return self._past_R

    def attend(
        self, layer: int, query_RHD: Tensor, key_RKD: Tensor, value_RKD: Tensor, scale: float, window: int | None
    ) -> Tensor:
        """Write the step's keys and values and attend (R, H, D) to each row so far, `window` tokens back at most."""
        rows, longest = len(query_RHD), max(self.lengths)
        self._make_room(layer, longest, value_RKD)
        keys, values = self._keys[layer], self._values[layer]
        keys[self._places_R, :, :, self._past_R] = key_RKD.float()
        values[self._places_R, :, self._past_R] = value_RKD
        query_BGD = query_RHD.view(rows * key_RKD.shape[1], -1, query_RHD.shape[2])
        key_BDN, value_BND = keys[:rows, ..., :longest].flatten(0, 1), values[:rows, :, :longest].flatten(0, 1)
        # In fp32, as in row_attention: rounded to bf16, scores of 100 would be off by a quarter.
        scores = torch.baddbmm(key_BDN[:, :1, :1], query_BGD.float(), key_BDN, beta=0, alpha=scale)
        unseen = self._unseen(longest, window)
        if unseen is not None:
            scores.view(rows, -1, longest).add_(unseen)
        return (torch.softmax(scores, -1).to(value_BND.dtype) @ value_BND).view_as(query_RHD)

    def _unseen(self, longest: int, window: int | None) -> Tensor | None:
        """-inf where a row's token must not look (R, 1, N); None where every row sees all there is."""
        if window not in self._hidden:
            token_N = torch.arange(longest, device=self._past_R.device)
            last_R1 = self._past_R[:, None]
            seen = token_N <= last_R1
            if window is not None:
                seen &= token_N > last_R1 - window
            added = torch.zeros(seen.shape, device=seen.device).masked_fill_(~seen, float("-inf"))[:, None]
            self._hidden[window] = None if bool(seen.all()) else added
        return self._hidden[window]

    def _make_room(self, layer: int, needed: int, like_TKD: Tensor) -> None:
        there = self._values[layer].shape[2] if self._values[layer].dim() == 4 else 0
        if needed <= there:
            return
        room, (_, heads, size) = -(-needed // BLOCK) * BLOCK, like_TKD.shape
        # Zeros: what lies behind a row is weighed with nothing, which is nothing only of numbers.
        keys = like_TKD.new_zeros(self._slots, heads, size, room, dtype=torch.float32)
        values = like_TKD.new_zeros(self._slots, heads, room, size)
        if there:
            keys[..., :there], values[:, :, :there] = self._keys[layer], self._values[layer]
        self._keys[layer], self._values[layer] = keys, values
