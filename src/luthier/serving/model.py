"""A loaded model: turns requests into rows of tokens, and a batch of rows into completions.

Combines the artifact's template, tokenizer and weights. Knows nothing of HTTP or queues.
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
from luthier.serving.detokenizer import Detokenizer
from luthier.serving.errors import InvocationError
from luthier.serving.parameters import MAX_INTEGER, GenerationParameters
from luthier.serving.requests import InvocationRequest, Prompt
from luthier.serving.row import END, LENGTH, STOP, BatchRow, Completion, GenerationRequest, Token
from luthier.weights.load import compute_dtype, find_device
from luthier.weights.model import Model
from luthier.weights.resolved_model import ResolvedModel, resolve_model
from luthier.weights.row_limit import free_memory, is_out_of_memory
from luthier.weights.sample import (
    BeamSearch,
    SamplingParameters,
    StreamedPrompt,
    beam_search,
    generate_streaming,
    token_log_probabilities,
)

DEFAULT_NEW_TOKENS = 256
log = logging.getLogger(__name__)


class ServedModel:
    """A loaded model with its tokenizer and provenance.

    `context`: maximum number of tokens of prompt and completion, if below the model's own. `batch_tokens`: maximum
    number of tokens of a batch, with padding.
    """

    def __init__(
        self, target: ResolvedModel, tokenizer: Tokenizer, model: Model, *, name: str = "", context: int = 8_192,
        batch_tokens: int = 32_768,
    ) -> None:  # fmt: skip
        self.name = name or target.name
        self.provenance = target.provenance
        self.tokenizer = tokenizer
        self.model = model
        self.context = min(context, model.context_length)
        self.batch_tokens = batch_tokens
        self.is_broken = False  # the device no longer works

    @classmethod
    def load(
        cls, name: str, device: str, say: Callable[[str], None], *, served_name: str = "", context: int = 8_192,
        batch_tokens: int = 32_768,
    ) -> ServedModel:  # fmt: skip
        """Load an artifact folder, a run, or a base model; `served_name`: the model name in responses."""
        target, torch_device = resolve_model(name, say), find_device(device)
        tokenizer = Tokenizer.load(target.base, target.chat_template, target.chat_date)
        model = target.load(torch_device, target.dtype or compute_dtype("auto", torch_device))
        return cls(target, tokenizer, model, name=served_name, context=context, batch_tokens=batch_tokens)

    def prepare_rows(self, request: InvocationRequest) -> list[BatchRow]:
        """Turn a request into rows: `num_return_sequences` of each prompt, in order.

        InvocationError, naming the prompt, if it cannot be rendered or is too long.
        """
        rows = []
        for prompt in request.prompts:
            try:
                example = self._render(prompt, request.parameters)
            except UserError as error:
                raise InvocationError(f"{prompt.where}: {error}") from None
            rows += self._prompt_rows(example, prompt, request)
        return rows

    def _render(self, prompt: Prompt, parameters: GenerationParameters) -> Example:
        parse_special = parameters.parse_special_tokens
        if parse_special is None:
            parse_special = bool(self.provenance.get("settings", {}).get("parse_special_tokens"))
        raw = prompt.kind != "fields"
        fields = {"prompt": prompt.value} if prompt.kind == "text" else prompt.value
        return prompt_renderer(self.provenance, self.tokenizer, raw, parse_special)(fields)

    def _prompt_rows(self, example: Example, prompt: Prompt, request: InvocationRequest) -> list[BatchRow]:
        parameters = request.parameters
        ids = self._prompt_ids(example)
        if parameters.truncate is not None:
            ids = self._truncate(ids, parameters.truncate)
        max_new_tokens = self._max_new_tokens(len(ids), parameters, prompt.where)
        control_strings = {stop for stop in parameters.stop if stop in self.tokenizer.control_tokens}
        stop_ids = frozenset(self.tokenizer.stop_ids) | self._control_ids(control_strings)
        beams = _beams(parameters)
        with_logprobs = parameters.has_details or bool(request.stream)
        rows = []
        for choice in _choices(parameters, 1 if beams else parameters.num_return_sequences):
            row_request = GenerationRequest(
                prompt=example.prompt, prompt_ids=ids, max_new_tokens=max_new_tokens, choice=choice, beams=beams,
                stop_ids=stop_ids, with_logprobs=with_logprobs, with_prefill=parameters.decoder_input_details,
                stop_strings=tuple(stop for stop in parameters.stop if stop not in control_strings),
                max_seconds=parameters.max_time,
            )  # fmt: skip
            rows.append(BatchRow(request=row_request, detokenizer=self._detokenizer(row_request)))
        return rows

    def _detokenizer(self, request: GenerationRequest) -> Detokenizer:
        return Detokenizer(self.tokenizer, request.prompt_ids, request.stop_strings, live=request.with_logprobs)

    def _prompt_ids(self, example: Example) -> list[int]:
        ids, prefix = self.tokenizer.prompt_ids(example), self.tokenizer.prefix_ids
        may_repeat = example.add_special_tokens and prefix and not self.tokenizer.encoder_decoder
        # With parse_special_tokens the text may begin with the start token itself; it must not appear twice.
        return ids[len(prefix) :] if may_repeat and ids[len(prefix) : 2 * len(prefix)] == prefix else ids

    def _truncate(self, ids: list[int], length: int) -> list[int]:
        """Keep the last `length` tokens of a prompt, and its start token."""
        prefix = self.tokenizer.prefix_ids if ids[: len(self.tokenizer.prefix_ids)] == self.tokenizer.prefix_ids else []
        if len(ids) <= length:
            return ids
        return [*prefix, *ids[len(ids) - max(length - len(prefix), 1) :]]

    def _control_ids(self, names: set[str]) -> frozenset[int]:
        pieces = [Piece(name, trained=False, controls=((0, len(name)),)) for name in sorted(names)]
        return frozenset(token for piece in pieces for token in self.tokenizer.encode([piece]))

    def _max_new_tokens(self, length: int, parameters: GenerationParameters, where: str) -> int:
        """Maximum number of new tokens for a prompt of `length` tokens."""
        separate = self.model.is_encoder_decoder  # the prompt does not use up the decoder's context
        longest = self.context if separate else self.context - 1
        if not 0 < length <= longest:
            hint = f"; set parameters.truncate to {longest} to keep its last tokens" if length else ""
            raise InvocationError(f"{where}: the prompt has {length:,} tokens; expected 1 to {longest:,}{hint}")
        limit = self.context - (0 if separate else length)
        if parameters.max_length is not None:
            used = 1 if separate else length  # the decoder's start token counts
            if parameters.max_length <= used:
                raise InvocationError(
                    f"max_length: {parameters.max_length}: expected more than the prompt's {used:,} tokens"
                )
            limit = min(limit, parameters.max_length - used)
        if parameters.max_new_tokens is not None:
            return min(limit, parameters.max_new_tokens)
        return limit if parameters.max_length is not None else min(limit, DEFAULT_NEW_TOKENS)

    def can_batch(self, rows: Sequence[BatchRow]) -> bool:
        """Whether the rows fit in one batch: padded to the longest, every row must stay within the context."""
        requests = [row.request for row in rows]
        if any(request.beams for request in requests):
            return False
        width = max(len(request.prompt_ids) for request in requests)
        steps = max(request.max_new_tokens for request in requests)
        fits_context = self.model.is_encoder_decoder or width + steps <= self.model.context_length
        return fits_context and len(rows) * (width + steps) <= self.batch_tokens

    def generate(self, rows: Sequence[BatchRow]) -> None:
        """Finish rows that `can_batch`. Out of memory: retry in halves; other errors: fail the row they occur in."""
        pending = [list(rows)]
        while pending:
            batch = [row for row in pending.pop(0) if not row.is_done]
            error = self._attempt(batch) if batch else None
            if error is None:
                continue
            if is_out_of_memory(error):
                free_memory()
                error = LuthierError("out of memory while generating; send a shorter prompt or request fewer tokens")
            if len(batch) == 1:
                batch[0].fail(error)
                continue
            half = (len(batch) + 1) // 2
            pending[:0] = [batch[:half], batch[half:]]

    def _attempt(self, rows: list[BatchRow]) -> Exception | None:
        """Generate for the rows as one batch; returns the error if it failed."""
        try:
            for row in rows:
                row.start()
                if row.request.with_prefill and not row.prefill:
                    row.prefill = self._prefill(row)
            if rows[0].request.beams:
                self._beam_search(rows[0], rows[0].request.beams)
            else:
                generate_streaming(self.model, [_line(row) for row in rows], self.tokenizer.pad_id)
        except Exception as error:
            if not is_out_of_memory(error):
                log.exception("generating for %d rows failed", len(rows))
                self.is_broken = self.is_broken or not self._device_works()
            return error.with_traceback(None)  # its frames hold memory
        return None

    def _device_works(self) -> bool:
        """Whether the device still computes; after some errors it no longer does in this process."""
        try:
            return float(torch.ones(1, device=self.model.device).sum()) == 1.0
        except RuntimeError:
            return False

    def _prefill(self, row: BatchRow) -> tuple[Token, ...]:
        """The tokens before the completion with their log-probabilities; the first has none."""
        prompt_ids = row.request.prompt_ids
        ids = [self.model.decoder_start_token_id or 0] if self.model.is_encoder_decoder else list(prompt_ids)
        scores, _ = token_log_probabilities(self.model, prompt_ids)
        return tuple(
            Token(token, self.tokenizer.show([token]), score) for token, score in zip(ids, [None, *scores], strict=True)
        )

    def _beam_search(self, row: BatchRow, beams: BeamSearch) -> None:
        request = row.request
        generations = beam_search(
            self.model, request.prompt_ids, request.max_new_tokens, request.choice, beams,
            stop_ids=sorted(request.stop_ids), pad_id=self.tokenizer.pad_id, max_seconds=request.max_seconds,
        )  # fmt: skip
        row.completions.set_result([self._beam_completion(row, item.ids, item.truncated) for item in generations])

    def _beam_completion(self, row: BatchRow, ids: list[int], truncated: bool) -> Completion:
        """Build the completion of a beam, truncated at the first stop string."""
        request, detokenizer = row.request, self._detokenizer(row.request)
        for token in ids:
            if not detokenizer.stopped:
                detokenizer.append(token)
        detokenizer.finish()
        tokens: list[Token] = []
        if request.with_logprobs:
            _, scores = token_log_probabilities(self.model, request.prompt_ids, detokenizer.ids)
            tokens = list(map(Token, detokenizer.ids, detokenizer.token_texts(), scores))
        reason = STOP if detokenizer.stopped else LENGTH if truncated else END
        return request.completion(detokenizer.text, reason, len(detokenizer.ids), tokens, row.prefill)


def _line(row: BatchRow) -> StreamedPrompt:
    request = row.request
    return StreamedPrompt(
        prompt=request.prompt_ids,
        max_new_tokens=request.max_new_tokens,
        sampling=request.choice,
        on_token=row.append,
        with_log_probabilities=request.with_logprobs,
    )


def _beams(parameters: GenerationParameters) -> BeamSearch | None:
    if parameters.num_beams == 1:
        return None
    return BeamSearch(parameters.num_beams, parameters.num_return_sequences, parameters.early_stopping)


def _choices(parameters: GenerationParameters, count: int) -> list[SamplingParameters]:
    """How tokens are chosen in each of a prompt's `count` rows; when sampling, with seed, seed + 1, ..."""
    greedy = SamplingParameters(
        repetition_penalty=parameters.repetition_penalty, no_repeat_ngram_size=parameters.no_repeat_ngram_size
    )
    if not parameters.is_sampling:
        return [greedy] * count
    temperature, top_p = parameters.temperature or 1.0, parameters.top_p or 1.0
    sampling = replace(greedy, temperature=temperature, top_k=parameters.top_k or 0, top_p=top_p)
    seed = secrets.randbelow(2**32) if parameters.seed is None else parameters.seed
    return [replace(sampling, seed=(seed + index) % (MAX_INTEGER + 1)) for index in range(count)]
