"""Likelihood of held-out rows under a model: loss in nats, hits and token counts, row by row.

Logits are never kept: each batch is reduced to three numbers a row at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from luthier.data.batches import in_order
from luthier.data.tokens import TokenStore
from luthier.weights.model import Model


@dataclass(frozen=True, slots=True)
class RowLikelihood:
    """Of one row: summed loss in nats, positions that carry loss, and how many of them the model got right."""

    row: int
    loss_sum: float
    tokens: int
    correct: int


def score_rows(
    model: Model, tokens: TokenStore, rows: np.ndarray, *, rows_per_batch: int, packed: bool, pad_id: int
) -> Iterator[RowLikelihood]:
    """Score each of `rows` (indices into `tokens`) once, longest first."""
    for batch in in_order(tokens, rows, rows_per_batch, packed, pad_id):
        on_device = batch.to(model.device)
        scores = model.scores(on_device)
        count = len(batch.rows)
        loss = torch.zeros(count, dtype=torch.float64).index_add_(0, batch.row_of_label_N, scores.loss_N.cpu().double())
        hits = torch.zeros(count, dtype=torch.long).index_add_(0, batch.row_of_label_N, scores.hit_N.cpu().long())
        labels = torch.bincount(batch.row_of_label_N, minlength=count)
        for place, row in enumerate(batch.rows):
            yield RowLikelihood(row, float(loss[place]), int(labels[place]), int(hits[place]))


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
