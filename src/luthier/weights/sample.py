"""Generation for a server: each prompt of a batch has its own sampling and gets its tokens one by one; beam search.

    generate_streaming        a batch of prompts, greedy and sampled ones together, by one Hugging Face generate
    beam_search               one prompt by beam search
    token_log_probabilities   the model's log-probabilities of given tokens

Each prompt's result equals that of the prompt run alone: penalties see its own tokens and no padding, and it samples
from a generator of its own, so a seed gives the same text in any batch (up to rounding between two nearly equal
logits). This module knows token ids, not text; generate.py is for whole datasets.
Shapes: B prompts, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList
from transformers.generation.logits_process import (
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from luthier.errors import LuthierError
from luthier.layers.batch import Batch, Source
from luthier.weights.generate import GeneratedTokens, pad, truncate_at_stop, without_generation_config
from luthier.weights.model import Model


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParameters:
    """How the next token is chosen: sampled with `seed`, or greedily where that is None.

    Penalties apply to both and see the prompt too (of an encoder-decoder: the decoder's tokens alone); `temperature`,
    `top_k` (0: off) and `top_p` apply to sampling. Order and meaning are Hugging Face's.
    """

    seed: int | None = None
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is chosen, without penalties."""
        return self.seed is None and self.repetition_penalty == 1.0 and self.no_repeat_ngram_size == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamedPrompt:
    """A prompt to continue by at most `max_new_tokens` tokens.

    `on_token` gets each token with the model's log-probability of it (nats, before penalties and temperature; 0.0
    unless `with_log_probabilities`) and returns whether to continue. It decides on stop tokens.
    """

    prompt: Sequence[int]
    max_new_tokens: int
    sampling: SamplingParameters
    on_token: Callable[[int, float], bool]
    with_log_probabilities: bool = False


@torch.no_grad()
def generate_streaming(model: Model, prompts: Sequence[StreamedPrompt], pad_id: int) -> None:
    """Continue each prompt until its `on_token` returns False or its `max_new_tokens` are written.

    The longest prompt plus the largest `max_new_tokens` must fit the model's context. Raises LuthierError when the
    logits contain NaN.
    """
    input_ids, mask = pad([list(prompt.prompt) for prompt in prompts], pad_id, left=not model.is_encoder_decoder)
    state = _BatchState(model, prompts)
    network: Any = model.hf_model  # with the adapter's layers inside
    with model.autocast(), without_generation_config(network):
        network.generate(
            input_ids=input_ids.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=max(prompt.max_new_tokens for prompt in prompts),
            do_sample=False,
            use_cache=True,
            pad_token_id=pad_id,
            logits_processor=LogitsProcessorList([_ChooseTokens(state)]),
            stopping_criteria=StoppingCriteriaList([_EmitTokens(state)]),
            **_decoder_start(model),
        )


class _BatchState:
    """The new tokens of each prompt of a batch, and which prompts are done."""

    def __init__(self, model: Model, prompts: Sequence[StreamedPrompt]) -> None:
        self.prompts = prompts
        self.new_ids: list[list[int]] = [[] for _ in prompts]
        self.is_done = [False] * len(prompts)
        self.generators = [
            None if (seed := prompt.sampling.seed) is None else torch.Generator().manual_seed(seed)
            for prompt in prompts
        ]
        self.processors = [_logits_processors(prompt.sampling) for prompt in prompts]
        decoder_start = [model.decoder_start_token_id] if model.is_encoder_decoder else None
        self.prompt_ids = [decoder_start or list(prompt.prompt) for prompt in prompts]
        self.log_probabilities = [0.0] * len(prompts)

    def choose(self, logits_BV: Tensor) -> Tensor:
        """Logits that allow only each prompt's chosen token; unchanged for greedy prompts without log-probabilities."""
        if bool(logits_BV.isnan().any()):
            raise LuthierError("the model's scores are not numbers: its weights, or their compute type, do not work")
        with_log_probabilities = any(prompt.with_log_probabilities for prompt in self.prompts)
        if not with_log_probabilities and all(prompt.sampling.is_greedy for prompt in self.prompts):
            return logits_BV
        chosen_B = logits_BV.argmax(-1)
        for index, prompt in enumerate(self.prompts):
            if not prompt.sampling.is_greedy and not self.is_done[index]:
                chosen_B[index] = self._choose_token(index, logits_BV[index])
        if with_log_probabilities:
            self.log_probabilities = logits_BV.log_softmax(-1).gather(-1, chosen_B[:, None])[:, 0].tolist()
        return torch.full_like(logits_BV, -torch.inf).scatter_(-1, chosen_B[:, None], 0.0)

    def _choose_token(self, index: int, logits_V: Tensor) -> int:
        # In doubles on the CPU: the sample is then the same whatever device and type the logits come from.
        logits_1V = logits_V[None].to("cpu", torch.float64)
        ids_1T = torch.tensor([self.prompt_ids[index] + self.new_ids[index]], dtype=torch.long)
        penalties, warpers = self.processors[index]
        for penalty in penalties:
            logits_1V = penalty(ids_1T, logits_1V)
        generator = self.generators[index]
        if generator is None:
            return int(logits_1V.argmax())
        logits_1V = logits_1V - logits_1V.max()  # no overflow at a low temperature, which divides
        for warper in warpers:
            logits_1V = warper(ids_1T, logits_1V)
        return _sample(logits_1V[0], generator)

    def emit(self, tokens: Sequence[int]) -> list[bool]:
        """Pass each unfinished prompt its new token; returns whether each prompt is done."""
        for index, (prompt, token) in enumerate(zip(self.prompts, tokens, strict=True)):
            if self.is_done[index]:
                continue
            self.new_ids[index].append(token)
            should_continue = prompt.on_token(token, self.log_probabilities[index])
            self.is_done[index] = not should_continue or len(self.new_ids[index]) >= prompt.max_new_tokens
        return self.is_done


class _ChooseTokens(LogitsProcessor):
    """generate's hook before a token is chosen."""

    def __init__(self, state: _BatchState) -> None:
        self.state = state

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        return self.state.choose(scores)


class _EmitTokens(StoppingCriteria):
    """generate's hook after a token was chosen."""

    def __init__(self, state: _BatchState) -> None:
        self.state = state

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        return torch.tensor(self.state.emit(input_ids[:, -1].tolist()), device=input_ids.device)


def _logits_processors(sampling: SamplingParameters) -> tuple[list[Any], list[Any]]:
    """Hugging Face's penalties, and its warpers for sampling."""
    penalties: list[Any] = []
    if sampling.repetition_penalty != 1.0:
        penalties.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    if sampling.no_repeat_ngram_size:
        penalties.append(NoRepeatNGramLogitsProcessor(sampling.no_repeat_ngram_size))
    warpers: list[Any] = [TemperatureLogitsWarper(sampling.temperature)] if sampling.temperature != 1.0 else []
    if sampling.top_k:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1.0:
        warpers.append(TopPLogitsWarper(sampling.top_p))
    return penalties, warpers


def _sample(logits_V: Tensor, generator: torch.Generator) -> int:
    """Draw one token by inverting the cumulative distribution."""
    cumulative_V = logits_V.softmax(-1).cumsum(-1)
    point = torch.rand(1, generator=generator, dtype=torch.float64) * cumulative_V[-1]
    index = int(torch.searchsorted(cumulative_V, point, right=True))
    return index if index < len(cumulative_V) else int(logits_V.argmax())


@dataclass(frozen=True, slots=True)
class BeamSearch:
    """Hugging Face's beam-search settings.

    With `early_stopping` the search ends when `num_beams` candidates have ended, instead of when no unfinished one can
    become more likely.
    """

    num_beams: int
    num_return_sequences: int = 1
    early_stopping: bool = False


@torch.no_grad()
def beam_search(
    model: Model,
    prompt: Sequence[int],
    max_new_tokens: int,
    sampling: SamplingParameters,
    beams: BeamSearch,
    *,
    stop_ids: Sequence[int],
    pad_id: int,
    max_seconds: float | None = None,
) -> list[GeneratedTokens]:
    """The most likely continuations of one prompt by beam search; beams are sampled where `sampling` has a seed."""
    input_ids = torch.tensor([list(prompt)], device=model.device)
    warping = {"temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p}
    network: Any = model.hf_model
    with model.autocast(), without_generation_config(network), _seeded(sampling.seed, model.device):
        sequences = network.generate(
            input_ids=input_ids,
            attention_mask=torch.ones_like(input_ids),
            max_new_tokens=max_new_tokens,
            max_time=max_seconds,
            do_sample=sampling.seed is not None,
            num_beams=beams.num_beams,
            num_return_sequences=beams.num_return_sequences,
            early_stopping=beams.early_stopping,
            repetition_penalty=sampling.repetition_penalty,
            no_repeat_ngram_size=sampling.no_repeat_ngram_size,
            use_cache=True,
            eos_token_id=list(stop_ids),
            pad_token_id=pad_id,
            **(warping if sampling.seed is not None else {}),
            **_decoder_start(model),
        )
    start = 1 if model.is_encoder_decoder else input_ids.shape[1]
    return [truncate_at_stop(ids[start:], set(stop_ids), max_new_tokens) for ids in sequences.tolist()]


@torch.no_grad()
def token_log_probabilities(
    model: Model, prompt: Sequence[int], completion: Sequence[int] = ()
) -> tuple[list[float], list[float]]:
    """The model's log-probability (nats) of each prompt token but the first, and of each completion token.

    The first list is empty for an encoder-decoder, which does not predict its prompt.
    """
    if model.is_encoder_decoder:
        if not len(completion):
            return [], []
        batch = _encoder_decoder_batch(model, prompt, completion)
        return [], (-model.scores(batch.to(model.device)).loss_N).tolist()
    if len(prompt) + len(completion) < 2:
        return [], []
    batch = _causal_batch(model, [*prompt, *completion])
    log_probabilities = (-model.scores(batch.to(model.device)).loss_N).tolist()
    return log_probabilities[: len(prompt) - 1], log_probabilities[len(prompt) - 1 :]


def _causal_batch(model: Model, ids: list[int]) -> Batch:
    """A batch of one row whose every token but the first is a label."""
    tokens, positions = torch.tensor([ids]), torch.arange(len(ids) - 1)
    return Batch(
        input_ids_BT=tokens, position_ids_BT=torch.arange(len(ids))[None],
        attention_mask_BT=None if model.supports_packing else torch.ones_like(tokens), row_lengths=(len(ids),),
        positions_N=positions, labels_N=tokens[0, 1:], row_of_label_N=torch.zeros_like(positions), rows=(0,),
    )  # fmt: skip


def _encoder_decoder_batch(model: Model, prompt: Sequence[int], completion: Sequence[int]) -> Batch:
    """A batch of one prompt and completion; every completion token is a label."""
    source_ids, labels = torch.tensor([list(prompt)]), torch.tensor(list(completion))
    tokens = torch.tensor([[model.decoder_start_token_id, *completion[:-1]]])
    is_packed, positions = model.supports_packing, torch.arange(len(labels))
    return Batch(
        input_ids_BT=tokens, position_ids_BT=positions[None],
        attention_mask_BT=None if is_packed else torch.ones_like(tokens), row_lengths=(len(labels),),
        positions_N=positions, labels_N=labels, row_of_label_N=torch.zeros_like(positions), rows=(0,),
        source=Source(source_ids, None if is_packed else torch.ones_like(source_ids), (len(prompt),)),
    )  # fmt: skip


def _decoder_start(model: Model) -> dict[str, Any]:
    return {"decoder_start_token_id": model.decoder_start_token_id} if model.is_encoder_decoder else {}


@contextmanager
def _seeded(seed: int | None, device: torch.device) -> Iterator[None]:
    """Seed torch's global generators for Hugging Face's sampling, and restore them afterwards."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
