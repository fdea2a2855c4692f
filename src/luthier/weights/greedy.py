"""Greedy answers by Luthier's fused layers: rows leave when they end, and the next prompt takes their slot.

    waiting   longest prompt first: what memory is needed shows at once
    slots     active rows; a step writes one token of each
    ended     a stop token, or no room left; its slot is filled from those that wait, or closed

It knows tensors and token ids, nothing of files or texts. The reference is transformers' `generate`
(tests/weights/test_generate.py).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from luthier.layers.cached_decoder import CachedDecoder, linear_layers_of
from luthier.layers.fused_stack import FusedStack
from luthier.layers.head_loss import OutputHead
from luthier.layers.kv_cache import CacheSlots
from luthier.layers.linear import Linear
from luthier.layers.projection import Projection, can_prepack

PREPACKED_BYTES = 2 << 30  # the most that a second copy of the weights may take, laid out for the processor
PROMPT_TOKENS = 2048  # read at once


@dataclass(slots=True)
class _Row:
    """A active row."""

    number: int
    room: int
    ids: list[int] = field(default_factory=list)

    def ended(self, stop_ids: set[int]) -> bool:
        return len(self.ids) >= self.room or self.ids[-1] in stop_ids


class GreedyDecoder:
    """A model's layers and head, laid out for many answers as they stand now."""

    def __init__(self, stack: FusedStack, head: OutputHead) -> None:
        outward = Linear(head.weight_VD, head.bias_V)
        size = sum(layer.weight_OI.numel() for layer in (*linear_layers_of(stack), outward)) * head.dtype.itemsize
        packed = size <= PREPACKED_BYTES and can_prepack(head.weight_VD.device, head.dtype)
        self._decoding = CachedDecoder(stack, head.dtype, packed)
        self._head = Projection((outward,), head.dtype, packed)
        self._device = head.weight_VD.device

    def answers(
        self, prompts: Mapping[int, Sequence[int]], rooms: Mapping[int, int], stop_ids: set[int], slots: int
    ) -> Iterator[tuple[int, list[int]]]:
        """Each row's new tokens, a stop token among them, as rows end. Prompts hold a token, and rooms are above 0."""
        waiting = deque(sorted(prompts, key=lambda row: -len(prompts[row])))
        held = self._decoding.slots(slots)
        at_work: list[_Row] = []
        while waiting or at_work:
            ended = [place for place, row in enumerate(at_work) if row.ended(stop_ids)]
            yield from ((at_work[place].number, at_work[place].ids) for place in ended)
            places = [*ended, *range(len(at_work), slots)]
            fresh = _next(waiting, prompts, len(places))
            if fresh:
                self._begin(held, at_work, places[: len(fresh)], [_Row(row, rooms[row]) for row in fresh], prompts)
            for place in reversed(ended[len(fresh) :]):
                held.end(place)
                last = at_work.pop()
                if place < len(at_work):
                    at_work[place] = last
            if at_work and not fresh:
                ids = torch.tensor([row.ids[-1] for row in at_work], device=self._device)
                _write(at_work, self._likeliest(self._decoding.step(held, ids)))

    def _begin(
        self,
        held: CacheSlots,
        at_work: list[_Row],
        places: Sequence[int],
        fresh: Sequence[_Row],
        prompts: Mapping[int, Sequence[int]],
    ) -> None:
        """Read the prompts of fresh rows and write each one's first token."""
        asked = [prompts[row.number] for row in fresh]
        ids = torch.tensor([token for prompt in asked for token in prompt], device=self._device)
        hidden = self._decoding.fill(held, places, ids, [len(prompt) for prompt in asked])
        _write(fresh, self._likeliest(hidden))
        for place, row in zip(places, fresh, strict=True):
            at_work[place : place + 1] = [row]

    def _likeliest(self, hidden_RD: Tensor) -> list[int]:
        """The likeliest token of each. A head's scale and cap, which keep the order, have no say in it."""
        (logits_RV,) = self._head(hidden_RD)
        found: list[int] = logits_RV.float().argmax(-1).tolist()
        return found


def _next(waiting: deque[int], prompts: Mapping[int, Sequence[int]], most: int) -> list[int]:
    """As many rows as there are slots, and no more tokens than are read at once."""
    taken: list[int] = []
    tokens = 0
    while waiting and len(taken) < most and (not taken or tokens + len(prompts[waiting[0]]) <= PROMPT_TOKENS):
        taken.append(waiting.popleft())
        tokens += len(prompts[taken[-1]])
    return taken


def _write(rows: Sequence[_Row], tokens: Sequence[int]) -> None:
    for row, token in zip(rows, tokens, strict=True):
        row.ids.append(token)
