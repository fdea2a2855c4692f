"""A model that answers: what is asked becomes rows of tokens, a batch of rows becomes answers.

It puts the artifact's template, its tokenizer and its weights together; it knows neither HTTP nor queues.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from luthier.data.example import Example, Piece
from luthier.data.prompts import prompt_renderer
from luthier.data.tokenize import Tokenizer
from luthier.errors import LuthierError, UserError
from luthier.serving.parameters import LARGEST, Parameters
from luthier.serving.refusals import Refusal
from luthier.serving.requests import Asked, Prompt
from luthier.serving.row import END, LENGTH, STOP, Answer, Order, Row, Token
from luthier.serving.writing import Writing
from luthier.weights.load import compute_dtype, find_device
from luthier.weights.model import Model
from luthier.weights.row_limit import out_of_memory, release
from luthier.weights.sample import Beams, Choice, Line, continue_lines, log_likelihood, search
from luthier.weights.target import Target, find_target

DEFAULT_NEW_TOKENS = 256
log = logging.getLogger(__name__)


class Served:
    """A loaded model with its tokenizer and its provenance.

    `context`: most tokens of a prompt and its answer, for a model that was built for more. `batch_tokens`: most tokens
    of a batch, prompts and answers with their padding.
    """

    def __init__(
        self,
        target: Target,
        tokenizer: Tokenizer,
        model: Model,
        *,
        name: str = "",
        context: int = 8_192,
        batch_tokens: int = 32_768,
    ) -> None:
        self.name = name or target.name
        self.provenance = target.provenance
        self.tokenizer = tokenizer
        self.model = model
        self.context = min(context, model.context_length)
        self.batch_tokens = batch_tokens
        self.broken = False  # its device computes no more

    @classmethod
    def load(
        cls,
        name: str,
        device: str,
        say: Callable[[str], None],
        *,
        called: str = "",
        context: int = 8_192,
        batch_tokens: int = 32_768,
    ) -> Served:
        """Load an artifact folder, a run, or a base model by name; `called`: the name that its answers bear."""
        target, place = find_target(name, say), find_device(device)
        tokenizer = Tokenizer.load(target.base, target.chat_template)
        model = target.load(place, target.dtype or compute_dtype("auto", place))
        return cls(target, tokenizer, model, name=called, context=context, batch_tokens=batch_tokens)

    def rows(self, asked: Asked) -> list[Row]:
        """What is asked as rows of work: `num_return_sequences` answers of each prompt, in order.

        Refusal, in one line that names the prompt, for what cannot be rendered or does not fit.
        """
        rows = []
        for prompt in asked.prompts:
            try:
                example = self._render(prompt, asked.parameters)
            except UserError as error:
                raise Refusal(f"{prompt.where}: {error}") from None
            rows += self._rows_of(example, prompt, asked)
        return rows

    def _render(self, prompt: Prompt, asked: Parameters) -> Example:
        trusted = asked.parse_special_tokens
        if trusted is None:
            trusted = bool(self.provenance.get("settings", {}).get("parse_special_tokens"))
        raw = prompt.kind != "fields"
        fields = prompt.value if prompt.kind == "fields" else {_PLAIN[prompt.kind]: prompt.value}
        if prompt.kind == "messages" and not isinstance(prompt.value, list):
            raise UserError('expected a list of {"role": "system|user|assistant", "content": text}')
        return prompt_renderer(self.provenance, self.tokenizer, raw, trusted)(fields)

    def _rows_of(self, example: Example, prompt: Prompt, asked: Asked) -> list[Row]:
        parameters = asked.parameters
        ids = self._ids(example)
        if parameters.truncate is not None:
            ids = self._truncated(ids, parameters.truncate)
        room = self._room(len(ids), parameters, prompt.where)
        controls = {stop for stop in parameters.stop if stop in self.tokenizer.control_tokens}
        order = Order(
            example.prompt, ids, room, Choice(), frozenset(self.tokenizer.stop_ids) | self._control_ids(controls),
            tuple(stop for stop in parameters.stop if stop not in controls),
            beams=_beams(parameters),
            scored=parameters.detailed or bool(asked.stream),
            prefilled=parameters.decoder_input_details,
            most_seconds=parameters.max_time,
        )  # fmt: skip
        count = 1 if order.beams else parameters.num_return_sequences
        return [self._row(order, choice) for choice in _choices(parameters, count)]

    def _row(self, order: Order, choice: Choice) -> Row:
        return Row(replace(order, choice=choice), Writing(self.tokenizer, order.ids, order.stops, live=order.scored))

    def _ids(self, example: Example) -> list[int]:
        ids, start = self.tokenizer.prompt_ids(example), self.tokenizer.prefix_ids
        doubled = example.add_special_tokens and start and not self.tokenizer.encoder_decoder
        # A text that is trusted with its control tokens may bring the one that begins it.
        return ids[len(start) :] if doubled and ids[len(start) : 2 * len(start)] == start else ids

    def _truncated(self, ids: list[int], most: int) -> list[int]:
        """The last `most` tokens of a prompt, the one that begins a text kept."""
        start = self.tokenizer.prefix_ids if ids[: len(self.tokenizer.prefix_ids)] == self.tokenizer.prefix_ids else []
        if len(ids) <= most:
            return ids
        return [*start, *ids[len(ids) - max(most - len(start), 1) :]]

    def _control_ids(self, names: set[str]) -> frozenset[int]:
        pieces = [Piece(name, trained=False, controls=((0, len(name)),)) for name in sorted(names)]
        return frozenset(number for piece in pieces for number in self.tokenizer.encode([piece]))

    def _room(self, length: int, asked: Parameters, where: str) -> int:
        """New tokens that a prompt of `length` may get."""
        apart = self.model.encoder_decoder  # what is read takes nothing from what is written
        most = self.context if apart else self.context - 1
        if not 0 < length <= most:
            hint = f"; parameters.truncate: {most} keeps its last ones" if length else ""
            raise Refusal(f"{where}: the prompt has {length:,} tokens; this endpoint takes 1 to {most:,}{hint}")
        room = self.context - (0 if apart else length)
        if asked.max_length is not None:
            before = 1 if apart else length  # an answer of its own begins with the decoder's start token
            if asked.max_length <= before:
                raise Refusal(f"max_length: {asked.max_length}: the prompt alone has {before:,} tokens; expected more")
            room = min(room, asked.max_length - before)
        if asked.max_new_tokens is not None:
            return min(room, asked.max_new_tokens)
        return room if asked.max_length is not None else min(room, DEFAULT_NEW_TOKENS)

    def fit(self, rows: Sequence[Row]) -> bool:
        """Whether rows can be answered as one batch: no line may leave the context because of another's length."""
        if any(row.order.beams for row in rows):
            return False
        width, steps = max(len(row.order.ids) for row in rows), max(row.order.room for row in rows)
        inside = self.model.encoder_decoder or width + steps <= self.model.context_length
        return inside and len(rows) * (width + steps) <= self.batch_tokens

    def run(self, rows: Sequence[Row]) -> None:
        """Answer rows that `fit`. Where memory does not suffice they are done in halves; what fails fails alone."""
        portions = [list(rows)]
        while portions:
            part = [row for row in portions.pop(0) if not row.done]
            fault = self._attempt(part) if part else None
            if fault is None:
                continue
            if out_of_memory(fault):
                release()
                fault = LuthierError("out of memory while answering; send a shorter prompt, or ask for fewer tokens")
            if len(part) == 1:
                part[0].fail(fault)
                continue
            half = (len(part) + 1) // 2
            portions[:0] = [part[:half], part[half:]]

    def _attempt(self, rows: list[Row]) -> Exception | None:
        """Answer rows as one batch; what went wrong."""
        try:
            for row in rows:
                row.begin()
                if row.order.prefilled and not row.prefill:
                    row.prefill = self._prefill(row)
            if rows[0].order.beams:
                self._search(rows[0], rows[0].order.beams)
            else:
                continue_lines(self.model, [_line(row) for row in rows], self.tokenizer.pad_id)
        except Exception as error:
            if not out_of_memory(error):
                log.exception("answering %d rows failed", len(rows))
                self.broken = self.broken or not self._alive()
            return error.with_traceback(None)  # its frames hold what memory there is
        return None

    def _alive(self) -> bool:
        """Whether the device still computes: after some faults it does no more in this process."""
        try:
            return float(torch.ones(1, device=self.model.device).sum()) == 1.0
        except RuntimeError:
            return False

    def _prefill(self, row: Row) -> tuple[Token, ...]:
        """The tokens before the answer, with their log-probabilities; the first has none."""
        ids = [self.model.start_id or 0] if self.model.encoder_decoder else list(row.order.ids)
        scores, _ = log_likelihood(self.model, row.order.ids)
        return tuple(
            Token(token, self.tokenizer.show([token]), score) for token, score in zip(ids, [None, *scores], strict=True)
        )

    def _search(self, row: Row, beams: Beams) -> None:
        order = row.order
        found = search(
            self.model, order.ids, order.room, order.choice, beams, stop_ids=sorted(order.stop_ids),
            pad_id=self.tokenizer.pad_id, most_seconds=order.most_seconds,
        )  # fmt: skip
        row.answers.set_result([self._found(row, generation.ids, generation.truncated) for generation in found])

    def _found(self, row: Row, ids: list[int], truncated: bool) -> Answer:
        """An answer of a beam search, cut at the first stop string."""
        order = row.order
        writing = Writing(self.tokenizer, order.ids, order.stops, live=order.scored)
        for token in ids:
            if not writing.stopped:
                writing.add(token)
        writing.finish()
        tokens: tuple[Token, ...] = ()
        if order.scored:
            _, scores = log_likelihood(self.model, order.ids, writing.ids)
            tokens = tuple(map(Token, writing.ids, writing.texts(), scores))
        finish = STOP if writing.stopped else LENGTH if truncated else END
        return Answer(order.text, writing.text, finish, len(writing.ids), len(order.ids), order.choice.seed, tokens,
                      row.prefill)  # fmt: skip


_PLAIN = {"text": "prompt", "messages": "messages"}  # kind of a Prompt -> the field of a row without a template


def _line(row: Row) -> Line:
    order = row.order
    return Line(order.ids, order.room, order.choice, row.take, order.scored)


def _beams(asked: Parameters) -> Beams | None:
    if asked.num_beams == 1:
        return None
    return Beams(asked.num_beams, asked.num_return_sequences, asked.early_stopping)


def _choices(asked: Parameters, count: int) -> list[Choice]:
    """How each of a prompt's `count` answers is chosen: drawn by the seed, the seed after it, and so on."""
    choice = Choice(repetition_penalty=asked.repetition_penalty, no_repeat_ngram_size=asked.no_repeat_ngram_size)
    if not asked.samples:
        return [choice] * count
    drawn = replace(choice, temperature=asked.temperature or 1.0, top_k=asked.top_k or 0, top_p=asked.top_p or 1.0)
    seed = secrets.randbelow(2**32) if asked.seed is None else asked.seed
    return [replace(drawn, seed=(seed + place) % (LARGEST + 1)) for place in range(count)]
