"""Scores a model on held-out rows: the likelihood of every row, and greedy generation for a sample of them.

    rows -- likelihood, every row ------------------.
       `--- seeded sample -- greedy generation ------+--> scores/<model>.<split>.jsonl, one line per row

Base and tuned model are scored on the same rows, the same sample and with the same limits.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from luthier.data.batches import Layout
from luthier.data.example import Example
from luthier.data.tokenize import Tokenizer
from luthier.data.tokens import TokenStore
from luthier.evaluation.compare import no_references
from luthier.evaluation.likelihood import score_rows
from luthier.weights.generate import GeneratedTokens, generate
from luthier.weights.model import Model
from luthier.weights.row_limit import RowLimit

Array = np.ndarray[Any, Any]
MAX_NEW_TOKENS = 512  # generations for longer references are truncated
MAX_BATCH_TOKENS = 16384
CHUNK_ROWS = 256


class EvaluationRows(Protocol):
    """Tokenized rows and the examples they were rendered from, by index."""

    kind: str
    tokens: TokenStore

    def examples(self, indices: Array) -> Iterator[Example]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreSettings:
    """`generation_rows`: rows to generate for, drawn with `seed`; -1 for all, 0 for none. `answer_end`: a generated
    text ends before its first occurrence after the first word; "" for texts that end with a stop token only.

    The two limits adapt to the number of rows that fit in memory.
    """

    generation_rows: int
    seed: int
    rows_per_batch: int
    packing: bool
    answer_end: str = ""
    scoring_limit: RowLimit = field(default_factory=lambda: RowLimit(work="scoring"))
    generation_limit: RowLimit = field(default_factory=lambda: RowLimit(work="generating"))


@contextmanager
def _unlink_on_failure(path: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        path.unlink(missing_ok=True)
        raise


class HeldOutScorer:
    """Scores models on one held-out split. `rows` are indices into `prepared.tokens`."""

    def __init__(self, prepared: EvaluationRows, tokenizer: Tokenizer, rows: Array, settings: ScoreSettings) -> None:
        self.prepared = prepared
        self.tokens = _completion_loss_only(prepared.tokens, tokenizer)
        self.tokenizer = tokenizer
        self.rows = rows
        self.settings = settings
        self.sample = self._draw_sample()
        self.max_new_tokens = self._generation_limit()

    def score(self, model: Model, path: Path | None, advance: Callable[[int], None]) -> None:
        """Write the scores file of `model`; reports newly scored or generated rows to `advance`.

        DataError if every row to generate for has an empty reference.

        With several ranks, every rank calls this and only one passes a path.
        """
        lines = self._score_lines(model, advance)
        if path is None:
            deque(lines, maxlen=0)
            return
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        path.parent.mkdir(parents=True, exist_ok=True)
        with _unlink_on_failure(temporary), open(temporary, "w", encoding="utf-8") as handle:
            handle.writelines(json.dumps(line) + "\n" for line in lines)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)

    def _score_lines(self, model: Model, advance: Callable[[int], None]) -> Iterator[dict[str, object]]:
        tokens = self.tokens
        layout = Layout(
            self.settings.packing and model.supports_packing, self.tokenizer.pad_id, model.decoder_start_token_id
        )
        columns = np.zeros((len(tokens), 3)) if len(self.rows) else np.zeros((0, 3))
        settings = self.settings
        for row in score_rows(
            model, tokens, self.rows, rows_per_batch=settings.rows_per_batch, layout=layout,
            limit=settings.scoring_limit,
        ):  # fmt: skip
            columns[row.row] = row.loss_sum, row.tokens, row.correct
            advance(1)
        has_reference = not self.sample
        for index, example, generation in self._generate_sample(model, advance):
            loss_sum, count, correct = columns[index]
            fields = self._text_fields(example, generation)
            has_reference |= generation is not None and bool(fields["reference"].strip())
            yield fields | {"loss_sum": float(loss_sum), "tokens": int(count), "correct": int(correct)}
        if not has_reference:  # before a run trains: the base model is scored first
            raise no_references(len(self.sample))

    @property
    def work(self) -> int:
        """Total number of rows that one call of `score` reports to `advance`."""
        return len(self.rows) + len(self.sample)

    def _draw_sample(self) -> set[int]:
        if self.prepared.kind == "domain":
            return set()  # plain text has no reference to compare with
        count = self.settings.generation_rows
        if count < 0 or count >= len(self.rows):
            return set(self.rows.tolist())
        drawn = np.random.default_rng(self.settings.seed).choice(self.rows, count, replace=False)
        return set(drawn.tolist())

    def _generation_limit(self) -> int:
        """Maximum number of new tokens: a quarter more than the longest reference of the sample."""
        longest = max((int(self.tokens.trained_counts[row]) for row in self.sample), default=0)
        return min(MAX_NEW_TOKENS, max(16, longest + longest // 4))

    def _generate_sample(
        self, model: Model, advance: Callable[[int], None]
    ) -> Iterator[tuple[int, Example, GeneratedTokens | None]]:
        """Yield (row, example, its generation if the row is in the sample), holding CHUNK_ROWS texts in memory."""
        pairs = zip(self.rows.tolist(), self.prepared.examples(self.rows), strict=True)
        while chunk := list(islice(pairs, CHUNK_ROWS)):
            prompts = {index: self.tokenizer.prompt_ids(example) for index, example in chunk if index in self.sample}
            generations = dict(zip(prompts, self._generate(model, list(prompts.values())), strict=True))
            advance(len(generations))
            for index, example in chunk:
                yield index, example, generations.get(index)

    def _generate(self, model: Model, prompts: list[list[int]]) -> list[GeneratedTokens]:
        if not prompts:
            return []
        longest = max(map(len, prompts)) + self.max_new_tokens
        return generate(
            model, prompts, stop_ids=self.tokenizer.stop_ids, pad_id=self.tokenizer.pad_id,
            max_new_tokens=self.max_new_tokens, batch_size=max(1, min(64, MAX_BATCH_TOKENS // longest)),
            limit=self.settings.generation_limit,
        )  # fmt: skip

    def _text_fields(self, example: Example, generation: GeneratedTokens | None) -> dict[str, Any]:
        answer, has_ended = None, True
        if generation is not None:
            answer, has_ended = end_answer(self.tokenizer.decode(generation.ids), self.settings.answer_end)
        return {
            "row": example.source,
            "prompt": example.prompt,
            "reference": self._reference(example),
            "prediction": answer,
            "truncated_generation": generation is not None and generation.truncated and not has_ended,
        }

    def _reference(self, example: Example) -> str:
        """The completion; for a chat turn its text without the end-of-turn markers."""
        if example.add_special_tokens:
            return example.completion
        last = [piece for piece in example.pieces if piece.trained][-1:]
        return self.tokenizer.decode(self.tokenizer.encode(last))


def end_answer(text: str, end: str) -> tuple[str, bool]:
    """Cut `text` before the first `end` that follows a word; returns it, and whether there was one."""
    if not end:
        return text, False
    start = len(text) - len(text.lstrip())
    place = text.find(end, start)
    return (text, False) if place < 0 else (text[:place], True)


def _completion_loss_only(tokens: TokenStore, tokenizer: Tokenizer) -> TokenStore:
    """The same rows with loss on completions only, whatever the run was trained on."""
    return tokens if tokens.completion_only else TokenStore(tokens.folder, tokenizer.vocab_size)
