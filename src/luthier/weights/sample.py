"""Generation as a server needs it: lines that each choose tokens their own way, told of token by token; and beams.

    continue_lines   a batch of prompts, greedy and drawn ones side by side, by one Hugging Face generate
    search           one prompt by beam search
    log_likelihood   what the model thought of tokens that are there already

Each line is equal to the same line run alone: penalties see its own tokens and no padding, and it draws from a
generator of its own, so a seed gives one text in whatever company (up to float noise between two nearly equal
choices). It knows ids, nothing of text; `generate` is for whole sets of rows.
Shapes: B lines, T tokens, V vocabulary.
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
from luthier.weights.generate import Generation, padded, plainly, until_stop
from luthier.weights.model import Model


@dataclass(frozen=True, slots=True)
class Choice:
    """How a line's next token is chosen: drawn by `seed`, or the likeliest one where that is None.

    Penalties hold for both and see the prompt too (of an encoder-decoder: the decoder's tokens alone); `temperature`,
    `top_k` (0: all) and `top_p` for what is drawn. Order and meaning are Hugging Face's.
    """

    seed: int | None = None
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0

    @property
    def plain(self) -> bool:
        """Whether it is the likeliest token and nothing else."""
        return self.seed is None and self.repetition_penalty == 1.0 and self.no_repeat_ngram_size == 0


@dataclass(frozen=True, slots=True)
class Line:
    """A prompt to be continued by at most `room` tokens.

    `take` is told each token with the model's own log-probability of it (nats, before penalties and temperature; 0.0
    unless `scored`) and says whether to go on. It decides on stop tokens.
    """

    prompt: Sequence[int]
    room: int
    choice: Choice
    take: Callable[[int, float], bool]
    scored: bool = False


@torch.no_grad()
def continue_lines(model: Model, lines: Sequence[Line], pad_id: int) -> None:
    """Continue each line until its `take` says no or its room is used up.

    The longest prompt and the most room, together, must fit the model's context: a caller that mixes lengths sees to
    that. LuthierError when the model's scores are not numbers.
    """
    prompts = [list(line.prompt) for line in lines]
    input_ids, mask = padded(prompts, pad_id, left=not model.is_encoder_decoder)
    walk = _Walk(model, lines)
    network: Any = model.hf_model  # with the adapter's layers inside
    with model.autocast(), plainly(network):
        network.generate(
            input_ids=input_ids.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=max(line.room for line in lines),
            do_sample=False,
            use_cache=True,
            pad_token_id=pad_id,
            logits_processor=LogitsProcessorList([walk.choosing]),
            stopping_criteria=StoppingCriteriaList([walk.telling]),
            **_start(model),
        )


class _Walk:
    """The state of a batch of lines: what has been written on each, and which are done."""

    def __init__(self, model: Model, lines: Sequence[Line]) -> None:
        self.lines = lines
        self.written: list[list[int]] = [[] for _ in lines]
        self.done = [False] * len(lines)
        self.drawing = [
            None if line.choice.seed is None else torch.Generator().manual_seed(line.choice.seed) for line in lines
        ]
        self.steering = [_steering(line.choice) for line in lines]
        self.before = [
            [model.decoder_start_token_id] if model.is_encoder_decoder else list(line.prompt) for line in lines
        ]
        self.said = [0.0] * len(lines)
        self.choosing, self.telling = _Choosing(self), _Telling(self)

    def choose(self, scores_BV: Tensor) -> Tensor:
        """The scores with each drawn or penalised line's choice left as its only token."""
        if bool(scores_BV.isnan().any()):
            raise LuthierError("the model's scores are not numbers: its weights, or their compute type, do not work")
        scored = any(line.scored for line in self.lines)
        if not scored and all(line.choice.plain for line in self.lines):
            return scores_BV
        chosen_B = scores_BV.argmax(-1)
        for place, line in enumerate(self.lines):
            if not line.choice.plain and not self.done[place]:
                chosen_B[place] = self._pick(place, scores_BV[place])
        if scored:
            self.said = scores_BV.log_softmax(-1).gather(-1, chosen_B[:, None])[:, 0].tolist()
        return torch.full_like(scores_BV, -torch.inf).scatter_(-1, chosen_B[:, None], 0.0)

    def _pick(self, place: int, scores_V: Tensor) -> int:
        # In doubles on the CPU: the draw is then the same whatever device and type the scores come from.
        scores_1V = scores_V[None].to("cpu", torch.float64)
        ids_1T = torch.tensor([self.before[place] + self.written[place]], dtype=torch.long)
        penalties, warpers = self.steering[place]
        for penalty in penalties:
            scores_1V = penalty(ids_1T, scores_1V)
        generator = self.drawing[place]
        if generator is None:
            return int(scores_1V.argmax())
        scores_1V = scores_1V - scores_1V.max()  # the temperature divides: no overflow, however low it is
        for warper in warpers:
            scores_1V = warper(ids_1T, scores_1V)
        return _draw(scores_1V[0], generator)

    def tell(self, tokens: Sequence[int]) -> list[bool]:
        """Hand each line that goes on its new token; whether each line is done."""
        for place, (line, token) in enumerate(zip(self.lines, tokens, strict=True)):
            if self.done[place]:
                continue
            self.written[place].append(token)
            go_on = line.take(token, self.said[place])
            self.done[place] = not go_on or len(self.written[place]) >= line.room
        return self.done


class _Choosing(LogitsProcessor):
    """generate's hook before a token is taken."""

    def __init__(self, walk: _Walk) -> None:
        self.walk = walk

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        return self.walk.choose(scores)


class _Telling(StoppingCriteria):
    """generate's hook after a token was taken."""

    def __init__(self, walk: _Walk) -> None:
        self.walk = walk

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        return torch.tensor(self.walk.tell(input_ids[:, -1].tolist()), device=input_ids.device)


def _steering(choice: Choice) -> tuple[list[Any], list[Any]]:
    """Hugging Face's own penalties, and its own cuts of what is drawn from."""
    penalties: list[Any] = []
    if choice.repetition_penalty != 1.0:
        penalties.append(RepetitionPenaltyLogitsProcessor(choice.repetition_penalty))
    if choice.no_repeat_ngram_size:
        penalties.append(NoRepeatNGramLogitsProcessor(choice.no_repeat_ngram_size))
    warpers: list[Any] = [TemperatureLogitsWarper(choice.temperature)] if choice.temperature != 1.0 else []
    if choice.top_k:
        warpers.append(TopKLogitsWarper(choice.top_k))
    if choice.top_p < 1.0:
        warpers.append(TopPLogitsWarper(choice.top_p))
    return penalties, warpers


def _draw(scores_V: Tensor, generator: torch.Generator) -> int:
    """One token by its probability: a point of the line from 0 to 1 that the probabilities share."""
    shares_V = scores_V.softmax(-1).cumsum(-1)
    point = torch.rand(1, generator=generator, dtype=torch.float64) * shares_V[-1]
    place = int(torch.searchsorted(shares_V, point, right=True))
    return place if place < len(shares_V) else int(scores_V.argmax())


@dataclass(frozen=True, slots=True)
class Beams:
    """A beam search: `count` candidates side by side, of which the `answers` likeliest come back.

    `early_stopping`: it ends when `count` candidates have ended, instead of when none can become likelier.
    """

    count: int
    answers: int = 1
    early_stopping: bool = False


@torch.no_grad()
def search(
    model: Model,
    prompt: Sequence[int],
    room: int,
    choice: Choice,
    beams: Beams,
    *,
    stop_ids: Sequence[int],
    pad_id: int,
    most_seconds: float | None = None,
) -> list[Generation]:
    """The likeliest continuations of one prompt by beam search; of a choice with a seed, beams that are drawn."""
    input_ids = torch.tensor([list(prompt)], device=model.device)
    drawn = {"temperature": choice.temperature, "top_k": choice.top_k, "top_p": choice.top_p}
    network: Any = model.hf_model
    with model.autocast(), plainly(network), _seeded(choice.seed, model.device):
        sequences = network.generate(
            input_ids=input_ids,
            attention_mask=torch.ones_like(input_ids),
            max_new_tokens=room,
            max_time=most_seconds,
            do_sample=choice.seed is not None,
            num_beams=beams.count,
            num_return_sequences=beams.answers,
            early_stopping=beams.early_stopping,
            repetition_penalty=choice.repetition_penalty,
            no_repeat_ngram_size=choice.no_repeat_ngram_size,
            use_cache=True,
            eos_token_id=list(stop_ids),
            pad_token_id=pad_id,
            **(drawn if choice.seed is not None else {}),
            **_start(model),
        )
    before = 1 if model.is_encoder_decoder else input_ids.shape[1]
    return [until_stop(line[before:], set(stop_ids), room) for line in sequences.tolist()]


@torch.no_grad()
def log_likelihood(model: Model, prompt: Sequence[int], answer: Sequence[int] = ()) -> tuple[list[float], list[float]]:
    """The model's log-probability (nats) of each token of a prompt but its first, and of each token of an answer.

    Of an encoder-decoder, which reads the prompt and predicts none of it, the first list is empty.
    """
    if model.is_encoder_decoder:
        if not len(answer):
            return [], []
        found = model.scores(_pair(model, prompt, answer).to(model.device)).loss_N
        return [], (-found).tolist()
    if len(prompt) + len(answer) < 2:
        return [], []
    said = (-model.scores(_row(model, [*prompt, *answer]).to(model.device)).loss_N).tolist()
    return said[: len(prompt) - 1], said[len(prompt) - 1 :]


def _row(model: Model, ids: list[int]) -> Batch:
    """A batch of one row whose every token but the first is a label."""
    tokens = torch.tensor([ids])
    mask = None if model.supports_packing else torch.ones_like(tokens)
    places = torch.arange(len(ids) - 1)
    return Batch(
        tokens, torch.arange(len(ids))[None], mask, (len(ids),), places, tokens[0, 1:], torch.zeros_like(places), (0,)
    )


def _pair(model: Model, prompt: Sequence[int], answer: Sequence[int]) -> Batch:
    """A batch of one pair whose every answer token is a label."""
    read, labels = torch.tensor([list(prompt)]), torch.tensor(list(answer))
    tokens = torch.tensor([[model.decoder_start_token_id, *answer[:-1]]])
    packed = model.supports_packing
    source = Source(read, None if packed else torch.ones_like(read), (len(prompt),))
    mask = None if packed else torch.ones_like(tokens)
    places = torch.arange(len(labels))
    return Batch(tokens, places[None], mask, (len(labels),), places, labels, torch.zeros_like(places), (0,), source)


def _start(model: Model) -> dict[str, Any]:
    return {"decoder_start_token_id": model.decoder_start_token_id} if model.is_encoder_decoder else {}


@contextmanager
def _seeded(seed: int | None, device: torch.device) -> Iterator[None]:
    """Hugging Face's own draws from `seed`, the process's generators as they were."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
