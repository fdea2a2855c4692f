"""The in-context baseline: each row's prompt preceded by K solved examples, which fine-tuning has to beat.

    [ prompt 1, completion 1, blank line, ..., prompt K, completion K, blank line, prompt ] -> completion

The examples are drawn once, with a seed, from rows that are not scored; they carry no loss.
"""

from __future__ import annotations

from collections.abc import Iterator
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

SEPARATOR = Piece("\n\n", trained=False)


class ShotRows:
    """Rows with examples before them, tokenized into a store of their own in `folder`."""

    def __init__(
        self, prepared: Dataset, tokenizer: Tokenizer, rows: np.ndarray[Any, Any], shots: list[Example], folder: Path,
        context: int,
    ) -> None:  # fmt: skip
        self.kind = prepared.kind
        self.rows = np.arange(len(rows))
        self._prepared = prepared
        self._original = rows
        self._before = tuple(replace(piece, trained=False) for shot in shots for piece in (*shot.pieces, SEPARATOR))
        with closing(TokenWriter(folder, tokenizer.vocab_size)) as writer:
            for example in self.examples(self.rows):
                ids, trained = tokenizer.encode_examples([example])[0]
                if len(ids) > context:
                    raise SettingError(
                        f"--shots {len(shots)}: {example.source} has {len(ids):,} tokens with its examples, "
                        f"the model's context holds {context:,}; ask for fewer"
                    )
                writer.append(ids, mask_to_spans(trained))
        self.tokens = TokenStore(folder, tokenizer.vocab_size)

    def examples(self, indices: np.ndarray[Any, Any]) -> Iterator[Example]:
        """The rows' texts with the examples before them."""
        for example in self._prepared.examples(self._original[indices]):
            yield replace(example, pieces=(*self._before, *example.pieces))


def draw_shots(prepared: Dataset, pool: np.ndarray[Any, Any], count: int, seed: int) -> list[Example]:
    """`count` examples from the rows in `pool`; SettingError when it has fewer."""
    if prepared.kind == "domain":
        raise SettingError("--shots: running text has no prompts and completions; use instruction data")
    if len(pool) < count:
        raise SettingError(f"--shots {count}: only {len(pool)} rows are left to take examples from")
    drawn = np.sort(np.random.default_rng(seed).choice(pool, count, replace=False))
    return list(prepared.examples(drawn))
