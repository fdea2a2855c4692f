"""Likelihood of held-out rows under a model: loss in nats, token count and correct tokens of each row.

Logits are not kept: each batch is reduced to three numbers per row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from luthier.data.batches import Layout, collate, scoring_batches
from luthier.data.tokens import TokenStore
from luthier.layers.batch import Batch
from luthier.weights.model import Model
from luthier.weights.row_limit import RowLimit, map_chunks


@dataclass(frozen=True, slots=True)
class RowLikelihood:
    """One row: summed loss in nats, number of labels, and number of labels that the model ranks first."""

    row: int
    loss_sum: float
    tokens: int
    correct: int


def score_rows(
    model: Model, tokens: TokenStore, rows: np.ndarray, *, rows_per_batch: int, layout: Layout,
    limit: RowLimit | None = None,
) -> Iterator[RowLikelihood]:  # fmt: skip
    """Score `rows` (indices into `tokens`), longest first. `limit` adapts to the rows that fit in memory."""
    row_limit = limit or RowLimit(work="scoring")
    batches = scoring_batches(tokens, rows, rows_per_batch, layout)

    def score(batch: Batch) -> list[RowLikelihood]:
        def score_portion(rows: Sequence[int]) -> list[RowLikelihood]:
            is_whole = len(rows) == len(batch.rows)
            return _score_batch(model, batch if is_whole else collate(tokens, list(rows), layout))

        return [row for portion in map_chunks(batch.rows, row_limit, score_portion) for row in portion]

    for rows_of_batch in model.map(score, batches):
        yield from rows_of_batch


def _score_batch(model: Model, batch: Batch) -> list[RowLikelihood]:
    scores = model.scores(batch.to(model.device))
    count = len(batch.rows)
    loss = torch.zeros(count, dtype=torch.float64).index_add_(0, batch.row_of_label_N, scores.loss_N.cpu().double())
    hits = torch.zeros(count, dtype=torch.long).index_add_(0, batch.row_of_label_N, scores.correct_N.cpu().long())
    labels = torch.bincount(batch.row_of_label_N, minlength=count)
    return [
        RowLikelihood(row, float(loss[place]), int(labels[place]), int(hits[place]))
        for place, row in enumerate(batch.rows)
    ]


@dataclass(frozen=True, slots=True)
class Likelihood:
    """Over many rows: loss in nats per token, and the share of labels that the model ranks first."""

    loss: float
    token_accuracy: float
    tokens: int


def aggregate(rows: Iterator[RowLikelihood]) -> Likelihood:
    """Compute the token-weighted mean over `rows`."""
    loss_sum, tokens, correct = 0.0, 0, 0
    for row in rows:
        loss_sum += row.loss_sum
        tokens += row.tokens
        correct += row.correct
    return Likelihood(loss_sum / max(tokens, 1), correct / max(tokens, 1), tokens)
