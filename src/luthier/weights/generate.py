"""Greedy generation in batches, for scoring and for `luthier generate`.

Rows are sorted by prompt length so that batches carry little padding; answers come back in the order asked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

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

    `on_rows` is told the number of rows finished so far. A prompt that fills the context gets no token.
    """
    order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
    answers: dict[int, Generation] = {}
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        batch = [list(prompts[row]) for row in rows]
        room = min(max_new_tokens, model.context_length - max(len(prompt) for prompt in batch))
        if room > 0:
            found = _generate_batch(model, batch, stop_ids, pad_id, room)
        else:
            found = [Generation([], truncated=True)] * len(rows)
        answers |= dict(zip(rows, found, strict=True))
        if on_rows:
            on_rows(len(answers))
    return [answers[row] for row in range(len(prompts))]


def _generate_batch(
    model: Model, prompts: list[list[int]], stop_ids: Sequence[int], pad_id: int, max_new_tokens: int
) -> list[Generation]:
    width = max(len(prompt) for prompt in prompts)
    input_ids = torch.full((len(prompts), width), pad_id, dtype=torch.long)
    mask = torch.zeros_like(input_ids)
    for line, prompt in enumerate(prompts):
        input_ids[line, width - len(prompt) :] = torch.tensor(prompt)
        mask[line, width - len(prompt) :] = 1
    with model.computing():
        network: Any = model.network
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


def _until_stop(ids: list[int], stop_ids: set[int]) -> Generation:
    for place, token in enumerate(ids):
        if token in stop_ids:
            return Generation(ids[:place], truncated=False)
    return Generation(ids, truncated=True)
