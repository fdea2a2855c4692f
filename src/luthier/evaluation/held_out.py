"""Scoring a model on held-out rows: likelihood of each row, and a greedy answer to a sample of them.

    rows -- likelihood, all of them ---------------.
       `--- a seeded sample -- greedy generation ---+--> scores/<model>.<split>.jsonl, one line a row

Both models of a comparison see the same rows, the same sample and the same limits.
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
from luthier.evaluation.likelihood import score_rows
from luthier.weights.generate import Generation, generate
from luthier.weights.model import Model
from luthier.weights.row_limit import RowLimit

Array = np.ndarray[Any, Any]
GENERATION_CEILING = 512  # new tokens; longer references are compared with what fits
TOKENS_AT_ONCE = 16384
ROWS_IN_MEMORY = 256


class Rows(Protocol):
    """Prepared rows: token ids by index, and the texts they came from."""

    kind: str
    tokens: TokenStore

    def examples(self, indices: Array) -> Iterator[Example]: ...


@dataclass(frozen=True, slots=True)
class ScoreSettings:
    """`sample`: rows answered by generation, -1 for all, 0 for none; drawn with `seed`.

    `scoring` and `answering` learn how many rows fit in memory at once.
    """

    sample: int
    seed: int
    rows_per_batch: int
    packing: bool
    scoring: RowLimit = field(default_factory=lambda: RowLimit("scoring"))
    answering: RowLimit = field(default_factory=lambda: RowLimit("answering"))


@contextmanager
def _removed_on_failure(path: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        path.unlink(missing_ok=True)
        raise


class HeldOut:
    """One held-out split of a prepared dataset. `rows` are indices into `prepared.tokens`."""

    def __init__(self, prepared: Rows, tokenizer: Tokenizer, rows: Array, settings: ScoreSettings) -> None:
        self.prepared = prepared
        self.tokens = _completions_only(prepared.tokens, tokenizer)
        self.tokenizer = tokenizer
        self.rows = rows
        self.settings = settings
        self.sample = self._draw()
        self.max_new_tokens = self._room()

    def score(self, model: Model, path: Path | None, advance: Callable[[int], None]) -> None:
        """Write the scores file of `model`; `advance` is told of rows done (likelihood and generation count alike).

        Where several ranks run the model, each calls this; all but one give no path.
        """
        lines = self._scored(model, advance)
        if path is None:
            deque(lines, maxlen=0)
            return
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        path.parent.mkdir(parents=True, exist_ok=True)
        with _removed_on_failure(temporary), open(temporary, "w", encoding="utf-8") as handle:
            handle.writelines(json.dumps(line) + "\n" for line in lines)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)

    def _scored(self, model: Model, advance: Callable[[int], None]) -> Iterator[dict[str, object]]:
        """The lines of the scores file."""
        tokens = self.tokens
        layout = Layout(self.settings.packing and model.packs, self.tokenizer.pad_id, model.start_id)
        columns = np.zeros((len(tokens), 3)) if len(self.rows) else np.zeros((0, 3))
        how = self.settings
        for row in score_rows(
            model, tokens, self.rows, rows_per_batch=how.rows_per_batch, layout=layout, limit=how.scoring
        ):
            columns[row.row] = row.loss_sum, row.tokens, row.correct
            advance(1)
        for index, example, answer in self._answered(model, advance):
            loss_sum, count, correct = columns[index]
            yield self._line(example, answer) | {
                "loss_sum": float(loss_sum), "tokens": int(count), "correct": int(correct)
            }  # fmt: skip

    @property
    def work(self) -> int:
        """Rows that one call of `score` will report."""
        return len(self.rows) + len(self.sample)

    def _draw(self) -> set[int]:
        if self.prepared.kind == "domain":
            return set()  # a block of running text has no answer to compare with
        if self.settings.sample < 0 or self.settings.sample >= len(self.rows):
            return set(self.rows.tolist())
        drawn = np.random.default_rng(self.settings.seed).choice(self.rows, self.settings.sample, replace=False)
        return set(drawn.tolist())

    def _room(self) -> int:
        """New tokens allowed: a quarter more than the longest reference needs."""
        longest = max((int(self.tokens.trained_counts[row]) for row in self.sample), default=0)
        return min(GENERATION_CEILING, max(16, longest + longest // 4))

    def _answered(
        self, model: Model, advance: Callable[[int], None]
    ) -> Iterator[tuple[int, Example, Generation | None]]:
        """Each row's example, and the answer where the row is in the sample; a bounded number of texts at a time."""
        pairs = zip(self.rows.tolist(), self.prepared.examples(self.rows), strict=True)
        while chunk := list(islice(pairs, ROWS_IN_MEMORY)):
            asked = {index: self.tokenizer.prompt_ids(example) for index, example in chunk if index in self.sample}
            answers = dict(zip(asked, self._generate(model, list(asked.values())), strict=True))
            advance(len(answers))
            for index, example in chunk:
                yield index, example, answers.get(index)

    def _generate(self, model: Model, prompts: list[list[int]]) -> list[Generation]:
        if not prompts:
            return []
        longest = max(map(len, prompts)) + self.max_new_tokens
        return generate(
            model, prompts, stop_ids=self.tokenizer.stop_ids, pad_id=self.tokenizer.pad_id,
            max_new_tokens=self.max_new_tokens, batch_size=max(1, min(64, TOKENS_AT_ONCE // longest)),
            limit=self.settings.answering,
        )  # fmt: skip

    def _line(self, example: Example, answer: Generation | None) -> dict[str, object]:
        return {
            "row": example.source,
            "prompt": example.prompt,
            "reference": self._reference(example),
            "prediction": None if answer is None else self.tokenizer.decode(answer.ids),
            "truncated_generation": answer is not None and answer.truncated,
        }

    def _reference(self, example: Example) -> str:
        """The completion as written; of a chat turn, its text without the markers that close it."""
        if example.add_special_tokens:
            return example.completion
        last = [piece for piece in example.pieces if piece.trained][-1:]
        return self.tokenizer.decode(self.tokenizer.encode(last))


def _completions_only(tokens: TokenStore, tokenizer: Tokenizer) -> TokenStore:
    """The same rows with loss on completions alone: what is scored, whatever was trained on."""
    return tokens if tokens.completion_only else TokenStore(tokens.folder, tokenizer.vocab_size)
