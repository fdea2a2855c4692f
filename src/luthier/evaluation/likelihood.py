"""Likelihood of held-out rows under a model: loss in nats, hits and token counts, row by row.

Logits are never kept: each batch is reduced to three numbers a row at once.
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
from luthier.weights.row_limit import RowLimit, in_portions


@dataclass(frozen=True, slots=True)
class RowLikelihood:
    """Of one row: summed loss in nats, positions that carry loss, and how many of them the model got right."""

    row: int
    loss_sum: float
    tokens: int
    correct: int


def score_rows(
    model: Model,
    tokens: TokenStore,
    rows: np.ndarray,
    *,
    rows_per_batch: int,
    layout: Layout,
    limit: RowLimit | None = None,
) -> Iterator[RowLikelihood]:
    """Score each of `rows` (indices into `tokens`) once, longest first. `limit` learns how many fit in memory."""
    fits = limit or RowLimit("scoring")
    batches = scoring_batches(tokens, rows, rows_per_batch, layout)

    def score(batch: Batch) -> list[RowLikelihood]:
        def part(rows: Sequence[int]) -> list[RowLikelihood]:
            whole = len(rows) == len(batch.rows)
            return _score_batch(model, batch if whole else collate(tokens, list(rows), layout))

        return [row for scored in in_portions(batch.rows, fits, part) for row in scored]

    for scored in model.each(score, batches):
        yield from scored


def _score_batch(model: Model, batch: Batch) -> list[RowLikelihood]:
    scores = model.scores(batch.to(model.device))
    count = len(batch.rows)
    loss = torch.zeros(count, dtype=torch.float64).index_add_(0, batch.row_of_label_N, scores.loss_N.cpu().double())
    hits = torch.zeros(count, dtype=torch.long).index_add_(0, batch.row_of_label_N, scores.hit_N.cpu().long())
    labels = torch.bincount(batch.row_of_label_N, minlength=count)
    return [
        RowLikelihood(row, float(loss[place]), int(labels[place]), int(hits[place]))
        for place, row in enumerate(batch.rows)
    ]


@dataclass(frozen=True, slots=True)
class Likelihood:
    """Over many rows: loss in nats per token, and the share of tokens that were the most likely one."""

    loss: float
    token_accuracy: float
    tokens: int


def total(rows: Iterator[RowLikelihood]) -> Likelihood:
    """Token-weighted mean over `rows`."""
    loss_sum, tokens, correct = 0.0, 0, 0
    for row in rows:
        loss_sum += row.loss_sum
        tokens += row.tokens
        correct += row.correct
    return Likelihood(loss_sum / max(tokens, 1), correct / max(tokens, 1), tokens)
