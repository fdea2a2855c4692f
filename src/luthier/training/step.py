"""One optimizer step: the gradient of a window of micro-batches, as if it were one big batch.

ranks     deal the micro-batches; each adds up the gradient of its own, then the gradients are added up
weights   a micro-batch counts by its share of the label tokens of all ranks, so N ranks do what one would
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from luthier.errors import LuthierError
from luthier.layers.batch import Batch
from luthier.training.loss_scale import LossScale
from luthier.training.memory import BatchSplitter
from luthier.training.optimizer import clip_gradient
from luthier.training.process_group import ProcessGroup
from luthier.weights.model import Model
from luthier.weights.row_limit import needed_for


@dataclass(frozen=True, slots=True)
class MicroBatches:
    """The micro-batches that this rank takes in a step; it may have none.

    Random numbers (dropout) are drawn anew for each from `seed` and its rows: it does not matter which rank takes it,
    how many ranks there are, or whether it is computed twice. `cutter` cuts what does not fit in memory.
    """

    batches: Sequence[Batch]
    seed: str
    ranks: ProcessGroup
    cutter: BatchSplitter | None = None


@dataclass(frozen=True, slots=True)
class StepResult:
    """Of all ranks: loss in nats per label token, tokens, and the gradient's norm before clipping."""

    loss: float
    tokens: int
    completion_tokens: int
    gradient_norm: float


def take_step(
    model: Model,
    optimizer: torch.optim.Optimizer,
    window: MicroBatches,
    learning_rate: float,
    max_norm: float,
    smoothing: float = 0.0,
    scale: LossScale | None = None,
) -> StepResult:
    """Accumulate the window's gradient weighted by label tokens, clip it, and update the weights.

    The weight of a micro-batch is its share of the step's labels, so the step's gradient is that of one batch of all
    its rows, the last partial window of an epoch included. Under float16 (`scale`) a gradient that overflows is
    computed again under half the scale. LuthierError when the loss is not finite, or no scale is left: the weights are
    left as they were. All ranks go the same way.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    own = [batch for batch in window.batches if batch.completion_tokens]
    labels, tokens = window.ranks.total(
        sum(batch.completion_tokens for batch in own), sum(batch.tokens for batch in own)
    )
    while True:
        loss_sum = _accumulate(model, window, labels, smoothing, scale.value if scale else 1.0)
        _add_up(parameters, window.ranks)
        if scale:
            _unscale(parameters, scale.value)
        norm = clip_gradient(parameters, max_norm, window.ranks)
        if math.isfinite(loss_sum) and math.isfinite(norm):
            break
        optimizer.zero_grad()
        if scale is None or not math.isfinite(loss_sum) or not scale.lower():
            raise LuthierError(_not_finite(window, scale))
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    advice = "set peft_type=lora (or optim=adamw_bf16) or take a smaller model; the last checkpoint is intact"
    with needed_for("updating the weights", advice):
        optimizer.step()
    optimizer.zero_grad()
    if scale:
        scale.advance()
    return StepResult(loss_sum / labels, int(tokens), int(labels), norm)


def _accumulate(model: Model, window: MicroBatches, labels: float, smoothing: float, scale: float) -> float:
    """Add up the gradient of the mean loss, times `scale`; return the summed loss of all ranks."""

    def attempt(batches: Sequence[Batch]) -> float:
        loss_sum = 0.0
        for batch in batches:
            draw_from(window.seed, batch.rows)
            loss = model.loss(batch.to(model.device), smoothing)
            (loss / labels * scale).backward()
            loss_sum += loss.item()
        return loss_sum

    if window.cutter is None:
        return window.ranks.total(attempt(window.batches))[0]
    # Before the ranks exchange anything: one that must try again keeps the others waiting, no more.
    found = window.cutter.fitting(window.batches, attempt, lambda: model.network.zero_grad(set_to_none=True))
    return window.ranks.total(found)[0]


def draw_from(seed: str, rows: tuple[int, ...]) -> None:
    """Draw the random numbers that come next from a seed and the rows they are for."""
    digest = hashlib.sha256(f"{seed}:{rows}".encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def _add_up(parameters: Sequence[nn.Parameter], ranks: ProcessGroup) -> None:
    """Add up the gradients of the ranks where each holds whole ones; shards were added up in the backward pass."""
    whole = [parameter for parameter in parameters if not isinstance(parameter, DTensor)]
    if ranks.size > 1:
        for parameter in whole:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        ranks.add_up([parameter.grad for parameter in whole if parameter.grad is not None])


def _unscale(parameters: Sequence[nn.Parameter], scale: float) -> None:
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad.div_(scale)


def _not_finite(window: MicroBatches, scale: LossScale | None) -> str:
    rows = sorted(row for batch in window.batches for row in batch.rows)
    advice = "lower learning_rate, or set max_grad_norm"
    if scale:
        advice = "float16 overflows where bfloat16 does not: set bf16=True or mixed_precision=False, or " + advice
    return f"the loss or its gradient is no longer finite (rows {rows[:8]}); {advice}; the last checkpoint is intact"
