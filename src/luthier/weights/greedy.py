"""Greedy generation with Luthier's fused layers and continuous batching.

    waiting   prompts in a queue, longest first, so that a lack of memory shows at the start
    active    rows with a slot of the KV cache; each decoding step appends one token to every row
    done      rows with a stop token or `max_new_tokens` tokens; the next prompt takes the slot

This module handles token ids, not text. The reference is transformers' `generate` (tests/weights/test_generate.py).
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

PREPACKED_BYTES = 2 << 30  # upper limit on the size of a second copy of the weights, in the CPU's packed layout
PROMPT_TOKENS = 2048  # per prefill


@dataclass(slots=True)
class _Row:
    """An active row; `ids` are its new tokens."""

    index: int
    prompt: Sequence[int]
    max_new_tokens: int
    ids: list[int] = field(default_factory=list)

    def is_done(self, stop_ids: set[int]) -> bool:
        return len(self.ids) >= self.max_new_tokens or self.ids[-1] in stop_ids


class GreedyDecoder:
    """Greedy decoding with a model's layers and output head, whose weights must not change meanwhile."""

    def __init__(self, stack: FusedStack, head: OutputHead) -> None:
        output_layer = Linear(head.weight_VD, head.bias_V)
        size = sum(layer.weight_OI.numel() for layer in (*linear_layers_of(stack), output_layer)) * head.dtype.itemsize
        is_packed = size <= PREPACKED_BYTES and can_prepack(head.weight_VD.device, head.dtype)
        self._decoder = CachedDecoder(stack, head.dtype, is_packed)
        self._head = Projection((output_layer,), head.dtype, is_packed)
        self._device = head.weight_VD.device

    def generate(
        self, prompts: Mapping[int, Sequence[int]], budgets: Mapping[int, int], stop_ids: set[int], slot_count: int
    ) -> Iterator[tuple[int, list[int]]]:
        """Yield each row's index and new tokens, including the stop token, as soon as the row is done.

        `budgets` are the rows' max_new_tokens, at least 1; every prompt has at least one token.
        """
        waiting = deque(sorted(prompts, key=lambda row: -len(prompts[row])))
        cache = self._decoder.slots(slot_count)
        active: list[_Row] = []
        while waiting or active:
            done_slots = [slot for slot, row in enumerate(active) if row.is_done(stop_ids)]
            yield from ((active[slot].index, active[slot].ids) for slot in done_slots)
            free_slots = [*done_slots, *range(len(active), slot_count)]
            admitted = _next_prefill(waiting, prompts, len(free_slots))
            if admitted:
                rows = [_Row(index, prompts[index], budgets[index]) for index in admitted]
                self._prefill(cache, active, free_slots[: len(rows)], rows)
            for slot in reversed(done_slots[len(admitted) :]):
                cache.end(slot)
                last = active.pop()
                if slot < len(active):
                    active[slot] = last
            if active and not admitted:
                ids = torch.tensor([row.ids[-1] for row in active], device=self._device)
                _append_tokens(active, self._most_likely(self._decoder.step(cache, ids)))

    def _prefill(self, cache: CacheSlots, active: list[_Row], slots: Sequence[int], rows: Sequence[_Row]) -> None:
        """Fill the rows' slots with their prompts and append each row's first token."""
        ids = torch.tensor([token for row in rows for token in row.prompt], device=self._device)
        hidden = self._decoder.fill(cache, slots, ids, [len(row.prompt) for row in rows])
        _append_tokens(rows, self._most_likely(hidden))
        for slot, row in zip(slots, rows, strict=True):
            active[slot : slot + 1] = [row]

    def _most_likely(self, hidden_RD: Tensor) -> list[int]:
        """The most likely token of each row. The head's scale and softcap are skipped: they keep the logits' order."""
        (logits_RV,) = self._head(hidden_RD)
        tokens: list[int] = logits_RV.float().argmax(-1).tolist()
        return tokens


def _next_prefill(waiting: deque[int], prompts: Mapping[int, Sequence[int]], free_slots: int) -> list[int]:
    """Dequeue rows for the next prefill: at most `free_slots`, and PROMPT_TOKENS tokens unless one prompt has more."""
    rows: list[int] = []
    tokens = 0
    while waiting and len(rows) < free_slots and (not rows or tokens + len(prompts[waiting[0]]) <= PROMPT_TOKENS):
        rows.append(waiting.popleft())
        tokens += len(prompts[rows[-1]])
    return rows


def _append_tokens(rows: Sequence[_Row], tokens: Sequence[int]) -> None:
    for row, token in zip(rows, tokens, strict=True):
        row.ids.append(token)
