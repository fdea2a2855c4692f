"""Greedy generation in batches, for scoring and for `luthier generate`.

Rows are sorted by prompt length so that batches carry little padding; answers come back in the order asked. Greedy
means the most likely token each time: penalties and sampling that a base model's generation_config.json brings do not
apply, for they would score the setting, not the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from transformers import GenerationConfig

from luthier.weights.model import Model


@dataclass(frozen=True, slots=True)
class Generation:
    """New token ids, the stop token left out; `truncated` when `max_new_tokens` or the context ended it."""

    ids: list[int]
    truncated: bool


@torch.no_grad()
def generate(
    model: Model,
    prompts: Sequence[Sequence[int]],
    *,
    stop_ids: Sequence[int],
    pad_id: int,
    max_new_tokens: int,
    batch_size: int = 16,
    on_rows: Callable[[int], None] | None = None,
) -> list[Generation]:
    """Continue each prompt greedily until a stop token; equal, token for token, to each prompt run alone.

    `on_rows` is told the number of rows finished so far. A prompt that is empty or fills the context gets no token.
    """
    rooms = [_room(model, len(prompt), max_new_tokens) for prompt in prompts]
    order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
    answers: dict[int, Generation] = {}
    for room, rows in _batches(order, rooms, batch_size):
        if room > 0:
            found = _generate_batch(model, [list(prompts[row]) for row in rows], stop_ids, pad_id, room)
        else:
            found = [Generation([], truncated=True)] * len(rows)
        answers |= dict(zip(rows, found, strict=True))
        if on_rows:
            on_rows(len(answers))
    return [answers[row] for row in range(len(prompts))]


def _room(model: Model, length: int, max_new_tokens: int) -> int:
    """New tokens that a prompt of `length` may get."""
    return min(max_new_tokens, model.context_length - length) if length else 0


def _batches(order: list[int], rooms: list[int], batch_size: int) -> Iterator[tuple[int, list[int]]]:
    """Batches of rows that have the same room, so that a long prompt never shortens another row's answer."""
    for room, group in groupby(order, key=lambda row: rooms[row]):
        rows = list(group)
        for start in range(0, len(rows), batch_size):
            yield room, rows[start : start + batch_size]


def _generate_batch(
    model: Model, prompts: list[list[int]], stop_ids: Sequence[int], pad_id: int, max_new_tokens: int
) -> list[Generation]:
    width = max(len(prompt) for prompt in prompts)
    input_ids = torch.full((len(prompts), width), pad_id, dtype=torch.long)
    mask = torch.zeros_like(input_ids)
    for line, prompt in enumerate(prompts):
        input_ids[line, width - len(prompt) :] = torch.tensor(prompt)
        mask[line, width - len(prompt) :] = 1
    network: Any = model.plain  # with the adapter's layers inside
    with model.computing(), _plainly(network):
        sequences = network.generate(
            input_ids=input_ids.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            use_cache=True,
            eos_token_id=list(stop_ids),
            pad_token_id=pad_id,
        )
    return [_until_stop(line[width:], set(stop_ids)) for line in sequences.tolist()]


@contextmanager
def _plainly(network: Any) -> Iterator[None]:
    """Keep the base model's own generation settings out: transformers would mix them in."""
    before = network.generation_config
    network.generation_config = GenerationConfig()
    try:
        yield
    finally:
        network.generation_config = before


def _until_stop(ids: list[int], stop_ids: set[int]) -> Generation:
    for place, token in enumerate(ids):
        if token in stop_ids:
            return Generation(ids[:place], truncated=False)
    return Generation(ids, truncated=True)
