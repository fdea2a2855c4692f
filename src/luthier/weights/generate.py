"""Greedy (or beam) generation, for scoring and for `luthier generate`.

Greedy answers of models that Luthier's fused layers compute are written in slots (greedy.py); transformers' `generate`
writes all others, in batches of rows sorted by prompt length so that they carry little padding. Answers come back in
the order asked. Greedy means the most likely token each time: penalties and sampling that a base model's
generation_config.json brings do not apply, for they would score the setting, not the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from transformers import GenerationConfig

from luthier.layers.module_readers import UnsupportedModuleError
from luthier.weights.greedy import GreedyDecoder
from luthier.weights.model import Model
from luthier.weights.row_limit import RowLimit, free_memory, is_out_of_memory, map_chunks


@dataclass(frozen=True, slots=True)
class GeneratedTokens:
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
    beams: int = 1,
    limit: RowLimit | None = None,
) -> list[GeneratedTokens]:
    """Continue each prompt greedily until a stop token; equal, token for token, to each prompt run alone.

    An encoder-decoder reads the prompt and writes from its start token on. `beams` above 1 keeps that many candidates
    and takes the likeliest whole answer. A prompt that is empty or fills the context gets no token. `limit` learns how
    many prompts fit in memory at once, where `batch_size` do not.
    """
    rooms = [_room(model, len(prompt), max_new_tokens) for prompt in prompts]
    order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
    answers = {row: GeneratedTokens([], truncated=True) for row in order if rooms[row] <= 0}
    asked = [row for row in order if rooms[row] > 0]
    fits = limit or RowLimit(work="answering")
    parts = UnsupportedModuleError("beams") if beams > 1 else model.cached_decoding_parts()
    if not isinstance(parts, UnsupportedModuleError):
        greedy, stops = GreedyDecoder(*parts), set(stop_ids)

        def share(rows: list[int]) -> dict[int, GeneratedTokens]:
            return _in_slots(greedy, {row: prompts[row] for row in rows}, rooms, stops, batch_size, fits)

        shares = min(model.world_size, len(asked))
        for found in model.map(share, [asked[start::shares] for start in range(shares)]):
            answers |= found
    else:

        def batch(rows: Sequence[int], room: int) -> list[GeneratedTokens]:
            return _generate_batch(model, [list(prompts[row]) for row in rows], stop_ids, pad_id, room, beams)

        for rows, written in _in_batches(model, list(_batches(asked, rooms, batch_size)), batch, fits):
            answers |= dict(zip(rows, written, strict=True))
    return [answers[row] for row in range(len(prompts))]


def _in_slots(
    greedy: GreedyDecoder,
    prompts: dict[int, Sequence[int]],
    rooms: Sequence[int],
    stops: set[int],
    slots: int,
    fits: RowLimit,
) -> dict[int, GeneratedTokens]:
    """Answers by Luthier's fused layers; those that memory did not suffice for are begun again, fewer at once."""
    done: dict[int, GeneratedTokens] = {}
    while left := {row: prompt for row, prompt in prompts.items() if row not in done}:
        tried = fits.cap(min(slots, len(left)))
        try:
            for row, ids in greedy.answers(left, {row: rooms[row] for row in left}, stops, tried):
                done[row] = truncate_at_stop(ids, stops, rooms[row])
            continue
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        free_memory()
        fits.halve(tried)
    return done


def _in_batches(
    model: Model,
    batches: list[tuple[int, list[int]]],
    work: Callable[[Sequence[int], int], list[GeneratedTokens]],
    fits: RowLimit,
) -> Iterator[tuple[list[int], list[GeneratedTokens]]]:
    """Batches answered by transformers, as many rows of one at once as fit."""

    def answer(batch: tuple[int, list[int]]) -> list[GeneratedTokens]:
        room, rows = batch
        return [found for answers in map_chunks(rows, fits, lambda some: work(some, room)) for found in answers]

    for _, same in groupby(batches, key=lambda batch: batch[0]):
        alike = list(same)  # ranks that share a model all go on until the longest answer ends: each needs the room
        for (_, rows), found in zip(alike, model.map(answer, alike), strict=True):
            yield rows, found


def _room(model: Model, length: int, max_new_tokens: int) -> int:
    """New tokens that a prompt of `length` may get."""
    taken = 0 if model.is_encoder_decoder else length
    return min(max_new_tokens, model.context_length - taken) if length else 0


def _batches(order: list[int], rooms: list[int], batch_size: int) -> Iterator[tuple[int, list[int]]]:
    """Batches of rows that have the same room, so that a long prompt never shortens another row's answer."""
    for room, group in groupby(order, key=lambda row: rooms[row]):
        rows = list(group)
        for start in range(0, len(rows), batch_size):
            yield room, rows[start : start + batch_size]


def _generate_batch(
    model: Model, prompts: list[list[int]], stop_ids: Sequence[int], pad_id: int, max_new_tokens: int, beams: int
) -> list[GeneratedTokens]:
    input_ids, mask = pad(prompts, pad_id, left=not model.is_encoder_decoder)
    network: Any = model.hf_model  # with the adapter's layers inside
    with model.autocast(), without_generation_config(network):
        sequences = network.generate(
            input_ids=input_ids.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=beams,
            use_cache=True,
            eos_token_id=list(stop_ids),
            pad_token_id=pad_id,
            **({"decoder_start_token_id": model.decoder_start_token_id} if model.is_encoder_decoder else {}),
        )
    before = 1 if model.is_encoder_decoder else input_ids.shape[1]
    return [truncate_at_stop(line[before:], set(stop_ids), max_new_tokens) for line in sequences.tolist()]


def pad(prompts: list[list[int]], pad_id: int, left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts as lines of one width, and which of their tokens are real."""
    width = max(len(prompt) for prompt in prompts)
    input_ids = torch.full((len(prompts), width), pad_id, dtype=torch.long)
    mask = torch.zeros_like(input_ids)
    for line, prompt in enumerate(prompts):
        place = slice(width - len(prompt), width) if left else slice(0, len(prompt))
        input_ids[line, place] = torch.tensor(prompt)
        mask[line, place] = 1
    return input_ids, mask


@contextmanager
def without_generation_config(network: Any) -> Iterator[None]:
    """Keep the base model's own generation settings out: transformers would mix them in."""
    before = network.generation_config
    network.generation_config = GenerationConfig()
    try:
        yield
    finally:
        network.generation_config = before


def truncate_at_stop(ids: list[int], stop_ids: set[int], room: int) -> GeneratedTokens:
    """What was written before the first stop token; without one, the first `room` tokens."""
    place = next((place for place, token in enumerate(ids) if token in stop_ids), None)
    return (
        GeneratedTokens(ids[:room], truncated=True) if place is None else GeneratedTokens(ids[:place], truncated=False)
    )
