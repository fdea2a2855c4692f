"""Greedy (or beam) generation, for scoring and for `luthier generate`.

Models that Luthier's fused layers support decode greedily with continuous batching (greedy.py). Everything else goes
through transformers' `generate`, in batches of rows of similar prompt length to save padding. Results are in the order
of the prompts. Penalties and sampling settings of the base model's generation_config.json are ignored: scores measure
the weights alone.
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
    """New token ids without the stop token; `truncated` if `max_new_tokens` or the context length was reached."""

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
    """Continue each prompt until a stop token; each result equals that of the prompt run alone, token for token.

    An encoder-decoder encodes the prompt and decodes from its start token. `beams` above 1 selects beam search. A
    prompt that is empty or fills the context gets no token. `limit` learns how many rows fit in memory when
    `batch_size` rows do not.
    """
    budgets = [_token_budget(model, len(prompt), max_new_tokens) for prompt in prompts]
    order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
    results = {row: GeneratedTokens([], truncated=True) for row in order if budgets[row] <= 0}
    pending = [row for row in order if budgets[row] > 0]
    row_limit = limit or RowLimit(work="answering")
    parts = UnsupportedModuleError("beams") if beams > 1 else model.cached_decoding_parts()
    if not isinstance(parts, UnsupportedModuleError):
        decoder, stops = GreedyDecoder(*parts), set(stop_ids)

        def decode_shard(rows: list[int]) -> dict[int, GeneratedTokens]:
            return _decode_greedily(decoder, {row: prompts[row] for row in rows}, budgets, stops, batch_size, row_limit)

        shards = min(model.world_size, len(pending))
        for shard_results in model.map(decode_shard, [pending[start::shards] for start in range(shards)]):
            results |= shard_results
    else:

        def generate_rows(rows: Sequence[int], budget: int) -> list[GeneratedTokens]:
            return _generate_batch(model, [list(prompts[row]) for row in rows], stop_ids, pad_id, budget, beams)

        batches = list(_batches(pending, budgets, batch_size))
        for rows, batch_results in _generate_batches(model, batches, generate_rows, row_limit):
            results |= dict(zip(rows, batch_results, strict=True))
    return [results[row] for row in range(len(prompts))]


def _decode_greedily(
    decoder: GreedyDecoder,
    prompts: dict[int, Sequence[int]],
    budgets: Sequence[int],
    stops: set[int],
    slots: int,
    row_limit: RowLimit,
) -> dict[int, GeneratedTokens]:
    """Results of Luthier's fused layers; after an out-of-memory error, unfinished rows restart with fewer slots."""
    done: dict[int, GeneratedTokens] = {}
    while unfinished := {row: prompt for row, prompt in prompts.items() if row not in done}:
        slot_count = row_limit.cap(min(slots, len(unfinished)))
        try:
            for row, ids in decoder.generate(unfinished, {row: budgets[row] for row in unfinished}, stops, slot_count):
                done[row] = truncate_at_stop(ids, stops, budgets[row])
            continue
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        free_memory()
        row_limit.halve(slot_count)
    return done


def _generate_batches(
    model: Model,
    batches: list[tuple[int, list[int]]],
    generate_rows: Callable[[Sequence[int], int], list[GeneratedTokens]],
    row_limit: RowLimit,
) -> Iterator[tuple[list[int], list[GeneratedTokens]]]:
    """Yield the rows and results of each batch; transformers gets as many rows of it at once as fit in memory."""

    def generate_batch(batch: tuple[int, list[int]]) -> list[GeneratedTokens]:
        budget, rows = batch
        chunks = map_chunks(rows, row_limit, lambda chunk: generate_rows(chunk, budget))
        return [result for chunk in chunks for result in chunk]

    # Ranks that share a model all run until the longest result ends, so they need batches of equal budgets.
    for _, group in groupby(batches, key=lambda batch: batch[0]):
        same_budget = list(group)
        for (_, rows), results in zip(same_budget, model.map(generate_batch, same_budget), strict=True):
            yield rows, results


def _token_budget(model: Model, prompt_length: int, max_new_tokens: int) -> int:
    """Upper limit on the new tokens of a prompt; 0 or less if there can be none."""
    used = 0 if model.is_encoder_decoder else prompt_length
    return min(max_new_tokens, model.context_length - used) if prompt_length else 0


def _batches(order: list[int], budgets: list[int], batch_size: int) -> Iterator[tuple[int, list[int]]]:
    """Batches of rows with equal budgets: a long prompt must not shorten the result of another row."""
    for budget, group in groupby(order, key=lambda row: budgets[row]):
        rows = list(group)
        for start in range(0, len(rows), batch_size):
            yield budget, rows[start : start + batch_size]


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
    start = 1 if model.is_encoder_decoder else input_ids.shape[1]
    return [truncate_at_stop(ids[start:], set(stop_ids), max_new_tokens) for ids in sequences.tolist()]


def pad(prompts: list[list[int]], pad_id: int, left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts padded to the longest one, int64 (B, T), and their attention mask."""
    width = max(len(prompt) for prompt in prompts)
    input_ids = torch.full((len(prompts), width), pad_id, dtype=torch.long)
    mask = torch.zeros_like(input_ids)
    for row, prompt in enumerate(prompts):
        columns = slice(width - len(prompt), width) if left else slice(0, len(prompt))
        input_ids[row, columns] = torch.tensor(prompt)
        mask[row, columns] = 1
    return input_ids, mask


@contextmanager
def without_generation_config(network: Any) -> Iterator[None]:
    """Hide the base model's generation settings, which transformers would merge with the arguments."""
    before = network.generation_config
    network.generation_config = GenerationConfig()
    try:
        yield
    finally:
        network.generation_config = before


def truncate_at_stop(ids: list[int], stop_ids: set[int], max_new_tokens: int) -> GeneratedTokens:
    """The tokens before the first stop token; without one, the first `max_new_tokens`."""
    stop = next((index for index, token in enumerate(ids) if token in stop_ids), None)
    return GeneratedTokens(ids[:max_new_tokens] if stop is None else ids[:stop], truncated=stop is None)
