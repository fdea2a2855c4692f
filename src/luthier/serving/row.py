"""A row of work: one prompt on its way through the model, and its answers.

The thread of the model tells it tokens; whoever asked waits for its future, or hears each token. It knows neither
HTTP nor how the model is run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from luthier.serving.writing import Writing

if TYPE_CHECKING:  # as in writing.py
    from luthier.weights.sample import Beams, Choice

LENGTH, END, STOP = "length", "eos_token", "stop_sequence"  # why an answer ended


@dataclass(frozen=True, slots=True)
class Token:
    """A token of a prompt or an answer. `text` is what it gave to the text; `logprob` the model's own, in nats."""

    id: int
    text: str
    logprob: float | None
    special: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer. `tokens` holds each of them where it was asked for, `count` how many they were."""

    prompt: str
    text: str
    finish: str
    count: int
    prompt_tokens: int
    seed: int | None = None
    tokens: tuple[Token, ...] = ()
    prefill: tuple[Token, ...] = ()


Hear = Callable[[Token, Answer | None], None]


@dataclass(frozen=True, slots=True)
class Order:
    """What is asked of the model for one row; `text` is the prompt's, `ids` its tokens."""

    text: str
    ids: Sequence[int]
    room: int
    choice: Choice
    stop_ids: frozenset[int]
    stops: tuple[str, ...] = ()
    beams: Beams | None = None
    scored: bool = False
    prefilled: bool = False
    most_seconds: float | None = None


@dataclass(slots=True, eq=False)
class Row:
    """An order and what has become of it. `hear` is told each token as it comes, the last one with the answer."""

    order: Order
    writing: Writing
    hear: Hear | None = None
    answers: Future[list[Answer]] = field(default_factory=Future)
    arrived: float = field(default_factory=time.monotonic)
    cancelled: bool = False
    prefill: tuple[Token, ...] = ()
    _told: list[tuple[int, float]] = field(default_factory=list)
    _seen: int = 0
    _began: float = 0.0

    def __post_init__(self) -> None:
        self.answers.set_running_or_notify_cancel()  # from here on only this row ends it

    @property
    def done(self) -> bool:
        """Whether nothing is left to do."""
        return self.cancelled or self.answers.done()

    def begin(self) -> None:
        """The model starts on it, perhaps again: tokens that were told before are then passed over."""
        self._seen = 0
        self._began = self._began or time.monotonic()

    def take(self, token: int, score: float) -> bool:
        """The next token; whether to go on."""
        self._seen += 1
        if self._seen <= len(self._told):
            return not self.done
        self._told.append((token, score))
        ended = token in self.order.stop_ids
        text = "" if ended else self.writing.add(token)
        reason = END if ended else STOP if self.writing.stopped else LENGTH if self._spent() else None
        logprob = score if self.order.scored else None
        if reason is None:
            if self.hear:
                self.hear(Token(token, text, logprob), None)
            return not self.cancelled
        text += self.writing.finish()
        answer = self._answer(STOP if self.writing.stopped else reason)
        self.answers.set_result([answer])
        if self.hear:
            self.hear(Token(token, text, logprob, special=ended), answer)
        return False

    def fail(self, error: Exception) -> None:
        """No answer can be had."""
        if not self.answers.done():
            self.answers.set_exception(error)

    def _spent(self) -> bool:
        late = self.order.most_seconds is not None and time.monotonic() - self._began >= self.order.most_seconds
        return late or len(self._told) >= self.order.room

    def _answer(self, finish: str) -> Answer:
        order = self.order
        tokens: tuple[Token, ...] = ()
        if order.scored:
            texts = [*self.writing.texts(), ""]  # a stop token gives none
            tokens = tuple(
                Token(token, texts[place], score, special=token in order.stop_ids)
                for place, (token, score) in enumerate(self._told)
            )
        return Answer(
            order.text, self.writing.text, finish, len(self._told), len(order.ids), order.choice.seed, tokens,
            self.prefill,
        )  # fmt: skip
