"""One optimizer step: the gradient of a window of micro-batches, as if it were one big batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from luthier.errors import LuthierError
from luthier.layers.batch import Batch
from luthier.weights.model import Model


@dataclass(frozen=True, slots=True)
class StepResult:
    """Loss in nats per label token over the window, its tokens, and the gradient's norm before clipping."""

    loss: float
    tokens: int
    completion_tokens: int
    gradient_norm: float


def take_step(
    model: Model, optimizer: torch.optim.Optimizer, window: Sequence[Batch], learning_rate: float, max_norm: float
) -> StepResult:
    """Accumulate the window's gradient weighted by label tokens, clip it, and update the weights.

    The weight of a micro-batch is its share of the window's labels, so the window's gradient is that of one batch of
    all its rows, the last partial window of an epoch included. LuthierError when the loss is not finite: the weights
    are left as they were.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    labels = sum(batch.completion_tokens for batch in window)
    loss_sum = 0.0
    for batch in window:
        loss = model.loss(batch.to(model.device))
        (loss / labels).backward()
        loss_sum += loss.item()
    norm = nn.utils.clip_grad_norm_(parameters, max_norm if max_norm > 0 else float("inf")).item()
    if not (loss_sum == loss_sum and abs(loss_sum) != float("inf") and norm == norm and norm != float("inf")):
        optimizer.zero_grad()
        rows = sorted(row for batch in window for row in batch.rows)
        raise LuthierError(
            f"the loss or its gradient is no longer finite (rows {rows[:8]}); lower learning_rate, or set "
            "max_grad_norm; the last checkpoint is intact"
        )
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.step()
    optimizer.zero_grad()
    return StepResult(loss_sum / labels, sum(batch.tokens for batch in window), labels, norm)
