"""Few-shot evaluation: each row's prompt preceded by K solved examples, the baseline that fine-tuning has to beat.

    [ prompt 1, completion 1, separator, ..., prompt K, completion K, separator, prompt ] -> completion

The examples are drawn once, with a seed, from rows that are not scored. Their tokens carry no loss. The separator is a
blank line, or as many line breaks as no completion contains. After its answer a model writes the separator and another
example, so an answer ends there; in conversations it ends with the turn.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from luthier.data.build import mask_to_spans
from luthier.data.example import Example, Piece
from luthier.data.prepare import Dataset
from luthier.data.tokenize import Tokenizer
from luthier.data.tokens import TokenStore, TokenWriter
from luthier.errors import SettingError

_LINE_BREAKS = re.compile(r"\n+")


def choose_separator(completions: Iterable[str]) -> str:
    """Return the shortest run of two or more line breaks that occurs inside none of the completions."""
    runs = (len(run) for text in completions for run in _LINE_BREAKS.findall(text.strip()))
    return "\n" * max(2, max(runs, default=0) + 1)


class FewShotRows:
    """Rows with the examples prepended, tokenized into a token store in `folder`.

    `answer_end`: the text at which a generated answer ends, or "" where the end of the turn ends it.
    """

    def __init__(
        self, prepared: Dataset, tokenizer: Tokenizer, rows: np.ndarray[Any, Any], shots: list[Example], folder: Path,
        context: int,
    ) -> None:  # fmt: skip
        self.kind = prepared.kind
        self.rows = np.arange(len(rows))
        self._prepared = prepared
        self._source_rows = rows
        texts = (example.completion for examples in (shots, prepared.examples(rows)) for example in examples)
        separator = "\n\n" if prepared.kind == "chat" else choose_separator(texts)
        self.answer_end = "" if prepared.kind == "chat" else separator
        between = Piece(separator, trained=False)
        self._prefix = tuple(replace(piece, trained=False) for shot in shots for piece in (*shot.pieces, between))
        with closing(TokenWriter(folder, tokenizer.vocab_size)) as writer:
            for example in self.examples(self.rows):
                ids, trained = tokenizer.encode_examples([example])[0]
                if len(ids) > context:
                    raise SettingError(
                        f"--shots {len(shots)}: {example.source} has {len(ids):,} tokens with its examples, more than "
                        f"the model's context of {context:,}; use a smaller number"
                    )
                writer.append(ids, mask_to_spans(trained))
        self.tokens = TokenStore(folder, tokenizer.vocab_size)

    def examples(self, indices: np.ndarray[Any, Any]) -> Iterator[Example]:
        """Yield the rows with the examples prepended."""
        for example in self._prepared.examples(self._source_rows[indices]):
            yield replace(example, pieces=(*self._prefix, *example.pieces))


def draw_few_shot_examples(prepared: Dataset, pool: np.ndarray[Any, Any], count: int, seed: int) -> list[Example]:
    """Draw `count` examples from the rows in `pool`; SettingError if it has fewer."""
    if prepared.kind == "domain":
        raise SettingError("--shots: plain text has no prompts and completions; use instruction data")
    if len(pool) < count:
        raise SettingError(f"--shots {count}: only {len(pool)} rows are available as examples")
    drawn = np.sort(np.random.default_rng(seed).choice(pool, count, replace=False))
    return list(prepared.examples(drawn))
