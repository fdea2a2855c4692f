"""One row of a batch: a prompt, its generation state, and its completions.

The model's thread appends tokens; the HTTP side waits for the row's future or receives each token by callback.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from luthier.serving.detokenizer import Detokenizer

if TYPE_CHECKING:  # as in detokenizer.py
    from luthier.weights.sample import BeamSearch, SamplingParameters

LENGTH, END, STOP = "length", "eos_token", "stop_sequence"  # finish reasons


@dataclass(frozen=True, slots=True)
class Token:
    """A token of a prompt or completion. `text`: what it adds to the text; `logprob`: the model's own, in nats."""

    id: int
    text: str
    logprob: float | None
    special: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """A finished completion. `tokens` and `prefill` (the prompt's tokens) are empty unless requested."""

    prompt: str
    text: str
    finish_reason: str
    token_count: int
    prompt_tokens: int
    seed: int | None = None
    tokens: tuple[Token, ...] = ()
    prefill: tuple[Token, ...] = ()


OnToken = Callable[[Token, Completion | None], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """What to generate for one row. `prompt_ids`: the tokens of `prompt`; `max_seconds`: a time limit."""

    prompt: str
    prompt_ids: Sequence[int]
    max_new_tokens: int
    choice: SamplingParameters
    stop_ids: frozenset[int]
    stop_strings: tuple[str, ...] = ()
    beams: BeamSearch | None = None
    with_logprobs: bool = False
    with_prefill: bool = False
    max_seconds: float | None = None

    def completion(
        self, text: str, finish_reason: str, token_count: int, tokens: Sequence[Token], prefill: tuple[Token, ...]
    ) -> Completion:
        """Build a completion of this request."""
        return Completion(
            prompt=self.prompt, text=text, finish_reason=finish_reason, token_count=token_count, tokens=tuple(tokens),
            prompt_tokens=len(self.prompt_ids), seed=self.choice.seed, prefill=prefill,
        )  # fmt: skip


@dataclass(slots=True, eq=False, kw_only=True)
class BatchRow:
    """A request and its state. `on_token` receives each token, the last one together with the completion."""

    request: GenerationRequest
    detokenizer: Detokenizer
    on_token: OnToken | None = None
    completions: Future[list[Completion]] = field(default_factory=Future)
    arrival_time: float = field(default_factory=time.monotonic)
    cancelled: bool = False
    prefill: tuple[Token, ...] = ()
    _tokens: list[tuple[int, float]] = field(default_factory=list)  # id, log-probability
    _position: int = 0
    _start_time: float = 0.0

    def __post_init__(self) -> None:
        self.completions.set_running_or_notify_cancel()  # the future can no longer be cancelled from outside

    @property
    def is_done(self) -> bool:
        return self.cancelled or self.completions.done()

    def start(self) -> None:
        """Start or restart generation; after a restart, tokens that were already delivered are not delivered again."""
        self._position = 0
        self._start_time = self._start_time or time.monotonic()

    def append(self, token: int, score: float) -> bool:
        """Add a token with its log-probability; returns whether to continue."""
        self._position += 1
        if self._position <= len(self._tokens):
            return not self.is_done
        self._tokens.append((token, score))
        is_end = token in self.request.stop_ids
        text = "" if is_end else self.detokenizer.append(token)
        reason = END if is_end else STOP if self.detokenizer.stopped else LENGTH if self._at_limit() else None
        logprob = score if self.request.with_logprobs else None
        if reason is None:
            if self.on_token:
                self.on_token(Token(token, text, logprob), None)
            return not self.cancelled
        text += self.detokenizer.finish()
        completion = self._completion(STOP if self.detokenizer.stopped else reason)
        self.completions.set_result([completion])
        if self.on_token:
            self.on_token(Token(token, text, logprob, special=is_end), completion)
        return False

    def fail(self, error: Exception) -> None:
        """Finish with an error, unless the row is finished."""
        if not self.completions.done():
            self.completions.set_exception(error)

    def _at_limit(self) -> bool:
        seconds = self.request.max_seconds
        is_late = seconds is not None and time.monotonic() - self._start_time >= seconds
        return is_late or len(self._tokens) >= self.request.max_new_tokens

    def _completion(self, finish_reason: str) -> Completion:
        tokens: list[Token] = []
        if self.request.with_logprobs:
            texts = [*self.detokenizer.token_texts(), ""]  # an end token has no text
            tokens = [
                Token(token, texts[index], score, special=token in self.request.stop_ids)
                for index, (token, score) in enumerate(self._tokens)
            ]
        return self.request.completion(self.detokenizer.text, finish_reason, len(self._tokens), tokens, self.prefill)
