"""The training loop.

    for each step:  take it, log it, validate when due, save when due, stop when asked

Everything it needs is in a `Run`; everything it changes is in the model, the optimizer and the `TrainingState`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from luthier.data.batches import BatchSampler, Layout, collate
from luthier.data.tokens import TokenStore
from luthier.errors import Interrupted
from luthier.evaluation.likelihood import Likelihood, aggregate, score_rows
from luthier.layers.batch import Batch
from luthier.training.checkpoint import Checkpoints, TrainingState
from luthier.training.config import TrainingSettings
from luthier.training.loss_scale import LossScale
from luthier.training.memory import BatchSplitter, RowLimits
from luthier.training.metrics import MetricsLog, NullMetricsLog, TrainingProgress
from luthier.training.optimizer import build_optimizer, learning_rate, optimizer_tensors, restore_optimizer
from luthier.training.parallelize import ShardedModel, idle
from luthier.training.process_group import ProcessGroup
from luthier.training.step import MicroBatches, StepResult, take_step
from luthier.training.tensor_file import laid_like, local
from luthier.weights.model import Model
from luthier.weights.row_limit import RowLimit


@dataclass(slots=True)
class Run:
    """A run about to train: the model, its rows, and where it leaves its traces."""

    model: Model
    tokens: TokenStore
    plan: BatchSampler
    validation_rows: np.ndarray
    settings: TrainingSettings
    layout: Layout
    checkpoints: Checkpoints
    ranks: ProcessGroup
    limits: RowLimits

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        limit = self.settings.run.max_steps
        return limit if limit > 0 else self.settings.run.epochs * self.plan.steps_per_epoch

    def window(self, step: int) -> MicroBatches:
        """This rank's micro-batches of a step, counted from 0."""
        every = self.plan.micro_batches(step)
        own = self.ranks.deal(every)
        if self.settings.run.find_batch and not self.limits.training.whole:
            own = [[row for rows in own for row in rows]][: len(own)]  # all in one, and what does not fit is cut
        batches = [self.collate(rows) for rows in own]
        if isinstance(self.model, ShardedModel) and len(batches) < self.ranks.rounds(len(every)):
            batches.append(idle(self.collate(every[-1][:1])))
        return MicroBatches(
            batches, f"{self.settings.run.seed}:{step}", self.ranks, BatchSplitter(self.limits.training, self.collate)
        )

    def collate(self, rows: list[int]) -> Batch:
        """The micro-batch of `rows`."""
        return collate(self.tokens, rows, self.layout)

    def validate(self) -> Likelihood:
        """Loss and token accuracy on the validation rows."""
        self.model.network.eval()
        per_batch = self.settings.run.eval_rows_per_batch
        rows = score_rows(
            self.model, self.tokens, self.validation_rows,
            rows_per_batch=per_batch, layout=self.layout, limit=self.limits.scoring,
        )  # fmt: skip
        result = aggregate(rows)
        self.model.network.train()
        return result


def train(run: Run, state: TrainingState, log: MetricsLog | NullMetricsLog, bar: TrainingProgress) -> None:
    """Train from `state` to the end; `state` is kept current. Raises Interrupted after saving when a stop was asked."""
    parameters = run.model.trainable_parameters()
    optimizer = build_optimizer(parameters, run.settings.optimizer, run.settings.run.seed)
    if state.step:
        _restore(run, state, optimizer)
    limit = run.limits.training
    limit.rows = None if limit.whole else state.rows_at_once or None
    run.model.network.train()
    while state.step < run.total_steps and not state.stopped_early:
        started = time.monotonic()
        rate = learning_rate(state.step, run.total_steps, run.settings.optimizer)
        scale = LossScale(state.loss_scale, state.steady_steps) if run.model.dtype is torch.float16 else None
        rule = run.settings.optimizer
        result = take_step(
            run.model, optimizer, run.window(state.step), rate, rule.max_grad_norm, rule.smoothing, scale
        )
        if scale:
            state.loss_scale, state.steady_steps = scale.value, scale.steady
        _count(state, result, time.monotonic() - started)
        _log(run, state, result, rate, log)
        bar.step(state.step, result.loss, result.tokens)

        improved = _validation_due(run, state.step) and _validate(run, state, log, bar)
        stopping = run.ranks.stopping
        if improved or stopping or state.stopped_early or _save_due(run, state.step):
            state.rows_at_once = _agree(limit, run.ranks)
            run.checkpoints.save(state, parameters, optimizer_tensors(optimizer, parameters))
        if stopping and state.step < run.total_steps:
            raise Interrupted(f"stopped after step {state.step} of {run.total_steps}; the checkpoint is written")
    run.model.network.eval()


def _agree(limit: RowLimit, ranks: ProcessGroup) -> int | None:
    """Let every rank go on with what fits on each; return it."""
    least = min((rows for rows in ranks.gather(limit.rows) if rows), default=None)
    if ranks.leads and least != limit.rows:
        limit.say(f"another rank ran out of memory: {least} rows at once on every rank from now on")
    limit.rows = least
    return least


def _restore(run: Run, state: TrainingState, optimizer: torch.optim.Optimizer) -> None:
    _, weights, moments = run.checkpoints.read(state.step)
    load_weights(run.model, weights)
    restore_optimizer(optimizer, run.model.trainable_parameters(), moments)


def load_weights(model: Model, weights: Mapping[str, torch.Tensor]) -> None:
    """Copy stored trainable weights into the model; of a sharded one, into this rank's share."""
    parameters = model.trainable_parameters()
    with torch.no_grad():
        for name, value in weights.items():
            local(parameters[name]).copy_(local(laid_like(value, parameters[name])))


def _count(state: TrainingState, result: StepResult, seconds: float) -> None:
    state.step += 1
    state.tokens += result.tokens
    state.completion_tokens += result.completion_tokens
    state.seconds += seconds


def _log(run: Run, state: TrainingState, result: StepResult, rate: float, log: MetricsLog | NullMetricsLog) -> None:
    if _logging_due(run, state.step):
        scale = {"loss_scale": state.loss_scale} if run.model.dtype is torch.float16 else {}
        limit = run.limits.training.rows
        log.write(
            step=state.step, epoch=round(run.plan.epoch_of(state.step), 4), loss=result.loss, learning_rate=rate,
            tokens=state.tokens, completion_tokens=state.completion_tokens, gradient_norm=result.gradient_norm,
            **scale, **({"rows_at_once": limit} if limit else {}),
        )  # fmt: skip


def _logging_due(run: Run, step: int) -> bool:
    rule = run.settings.validation
    if step == run.total_steps or (step == 1 and rule.log_first):
        return True
    if rule.logging == "no":
        return False
    return step % (rule.logging_steps if rule.logging == "steps" else run.plan.steps_per_epoch) == 0


def _validation_due(run: Run, step: int) -> bool:
    rule = run.settings.validation
    if rule.evaluate == "no" or len(run.validation_rows) == 0:
        return False
    every = rule.eval_steps if rule.evaluate == "steps" else run.plan.steps_per_epoch
    return step % every == 0 or step == run.total_steps


def _save_due(run: Run, step: int) -> bool:
    rule = run.settings.validation
    if step == run.total_steps:
        return True
    if rule.save == "no":
        return False
    return step % (rule.save_steps if rule.save == "steps" else run.plan.steps_per_epoch) == 0


def _validate(run: Run, state: TrainingState, log: MetricsLog | NullMetricsLog, bar: TrainingProgress) -> bool:
    """Score the validation rows; return whether this is the best step so far."""
    rule = run.settings.validation
    found = run.validate()
    epoch = round(run.plan.epoch_of(state.step), 4)
    log.write(step=state.step, epoch=epoch, eval_loss=found.loss, eval_token_accuracy=found.token_accuracy)
    previous = float("inf") if state.best_loss is None else state.best_loss
    best = found.loss < previous
    state.stale = 0 if found.loss < previous - rule.threshold else state.stale + 1
    state.stopped_early = 0 < rule.patience <= state.stale
    if best:
        state.best_step, state.best_loss = state.step, found.loss
    bar.note(
        f"step {state.step}  validation loss {found.loss:.4f}  token accuracy {found.token_accuracy:.1%}"
        + ("  best so far" if best else "")
        + (f"  stopping: {state.stale} validations without improvement" if state.stopped_early else "")
    )
    return best
