"""One optimizer step: the gradient accumulated over micro-batches, equal to that of one large batch.

ranks     shard the micro-batches; each accumulates the gradient of its own, then the gradients are all-reduced
weights   a micro-batch counts by its share of the label tokens of all ranks, so N ranks compute the gradient of one
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
from luthier.weights.row_limit import report_out_of_memory


@dataclass(frozen=True, slots=True)
class MicroBatches:
    """The micro-batches of one gradient-accumulation step that this rank computes; possibly none.

    Random numbers (dropout) are seeded for each from `seed` and its rows, so they depend neither on the rank, nor on
    the number of ranks, nor on recomputation. `splitter` splits micro-batches that do not fit in memory.
    """

    batches: Sequence[Batch]
    seed: str
    group: ProcessGroup
    splitter: BatchSplitter | None = None


@dataclass(frozen=True, slots=True)
class StepResult:
    """Over all ranks: loss in nats per label token, token counts, and the gradient norm before clipping."""

    loss: float
    tokens: int
    completion_tokens: int
    gradient_norm: float


def take_step(
    model: Model,
    optimizer: torch.optim.Optimizer,
    micro_batches: MicroBatches,
    learning_rate: float,
    max_norm: float,
    label_smoothing: float = 0.0,
    scale: LossScale | None = None,
) -> StepResult:
    """Accumulate the gradient of the micro-batches, clip it, and update the weights.

    A micro-batch is weighted by its share of the step's labels, so the gradient is that of one batch of all its rows,
    also in the last, partial step of an epoch. Under float16 (`scale`) a gradient that overflows is recomputed under
    half the scale. LuthierError when the loss is not finite or no smaller scale is left; the weights are then
    unchanged. All ranks take the same branch.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    labelled = [batch for batch in micro_batches.batches if batch.completion_tokens]
    labels, tokens = micro_batches.group.all_reduce_values(
        sum(batch.completion_tokens for batch in labelled), sum(batch.tokens for batch in labelled)
    )
    while True:
        loss_sum = _accumulate(model, micro_batches, labels, label_smoothing, scale.value if scale else 1.0)
        _all_reduce_gradients(parameters, micro_batches.group)
        if scale:
            _unscale(parameters, scale.value)
        norm = clip_gradient(parameters, max_norm, micro_batches.group)
        if math.isfinite(loss_sum) and math.isfinite(norm):
            break
        optimizer.zero_grad()
        if scale is None or not math.isfinite(loss_sum) or not scale.decrease():
            raise LuthierError(_not_finite_message(micro_batches, scale))
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    advice = "set peft_type=lora (or optim=adamw_bf16) or use a smaller model; the last checkpoint is intact"
    with report_out_of_memory("updating the weights", advice):
        optimizer.step()
    optimizer.zero_grad()
    if scale:
        scale.count_finite_step()
    return StepResult(loss_sum / labels, int(tokens), int(labels), norm)


def _accumulate(
    model: Model, micro_batches: MicroBatches, labels: float, label_smoothing: float, scale: float
) -> float:
    """Accumulate the gradient of the mean loss, times `scale`; return the loss summed over all ranks."""

    def backward(batches: Sequence[Batch]) -> float:
        loss_sum = 0.0
        for batch in batches:
            seed_random_numbers(micro_batches.seed, batch.rows)
            loss = model.loss(batch.to(model.device), label_smoothing)
            (loss / labels * scale).backward()
            loss_sum += loss.item()
        return loss_sum

    group, splitter = micro_batches.group, micro_batches.splitter
    if splitter is None:
        return group.all_reduce_values(backward(micro_batches.batches))[0]
    # Before any collective, so that a rank can retry while the others wait.
    loss_sum = splitter.run(micro_batches.batches, backward, lambda: model.network.zero_grad(set_to_none=True))
    return group.all_reduce_values(loss_sum)[0]


def seed_random_numbers(seed: str, rows: tuple[int, ...]) -> None:
    """Seed torch's generator from a seed and the rows that the next random numbers are for."""
    digest = hashlib.sha256(f"{seed}:{rows}".encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def _all_reduce_gradients(parameters: Sequence[nn.Parameter], group: ProcessGroup) -> None:
    """Sum the gradients of unsharded parameters over the ranks; FSDP reduced those of shards in the backward pass."""
    unsharded = [parameter for parameter in parameters if not isinstance(parameter, DTensor)]
    if group.world_size > 1:
        for parameter in unsharded:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        group.all_reduce([parameter.grad for parameter in unsharded if parameter.grad is not None])


def _unscale(parameters: Sequence[nn.Parameter], scale: float) -> None:
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad.div_(scale)


def _not_finite_message(micro_batches: MicroBatches, scale: LossScale | None) -> str:
    rows = sorted(row for batch in micro_batches.batches for row in batch.rows)
    advice = "lower learning_rate, or set max_grad_norm"
    if scale:
        advice = "float16 overflows where bfloat16 does not: set bf16=True or mixed_precision=False, or " + advice
    return f"the loss or its gradient is no longer finite (rows {rows[:8]}); {advice}; the last checkpoint is intact"
