"""The training loop.

    for each step:  optimizer step, log, validate when due, save when due, stop when requested

Its inputs are in `TrainingRun`; it changes the model, the optimizer and the `TrainingState`.
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
from luthier.training.metrics import MetricsLog, NullMetricsLog, TrainingBar
from luthier.training.optimizer import build_optimizer, learning_rate, optimizer_tensors, restore_optimizer
from luthier.training.parallelize import ShardedModel, without_labels
from luthier.training.process_group import ProcessGroup
from luthier.training.step import MicroBatches, StepResult, take_step
from luthier.training.tensor_file import distribute_like, local_tensor
from luthier.weights.model import Model
from luthier.weights.row_limit import RowLimit


@dataclass(slots=True, kw_only=True)
class TrainingRun:
    """The inputs of the training loop."""

    model: Model
    tokens: TokenStore
    sampler: BatchSampler
    validation_rows: np.ndarray
    settings: TrainingSettings
    layout: Layout
    checkpoints: Checkpoints
    group: ProcessGroup
    limits: RowLimits

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        max_steps = self.settings.run.max_steps
        return max_steps if max_steps > 0 else self.settings.run.epochs * self.sampler.steps_per_epoch

    def micro_batches(self, step: int) -> MicroBatches:
        """This rank's micro-batches of a step, counted from 0."""
        row_lists = self.sampler.micro_batches(step)
        shard = self.group.shard(row_lists)
        if self.settings.run.auto_find_batch_size and not self.limits.training.batch_setting:
            shard = [[row for rows in shard for row in rows]][: len(shard)]  # one micro-batch, split if it does not fit
        batches = [self.collate(rows) for rows in shard]
        if isinstance(self.model, ShardedModel) and len(batches) < self.group.largest_shard(len(row_lists)):
            batches.append(without_labels(self.collate(row_lists[-1][:1])))
        splitter = BatchSplitter(self.limits.training, self.collate)
        return MicroBatches(batches, f"{self.settings.run.seed}:{step}", self.group, splitter)

    def collate(self, rows: list[int]) -> Batch:
        """The micro-batch of `rows`."""
        return collate(self.tokens, rows, self.layout)

    def validate(self) -> Likelihood:
        """Loss and token accuracy on the validation rows."""
        self.model.network.eval()
        rows = score_rows(
            self.model, self.tokens, self.validation_rows,
            rows_per_batch=self.settings.run.eval_batch_size, layout=self.layout, limit=self.limits.scoring,
        )  # fmt: skip
        likelihood = aggregate(rows)
        self.model.network.train()
        return likelihood


def train(run: TrainingRun, state: TrainingState, log: MetricsLog | NullMetricsLog, bar: TrainingBar) -> None:
    """Train from `state`, which it updates, to the end. Raises Interrupted, after saving, on a stop request."""
    parameters = run.model.trainable_parameters()
    settings = run.settings.optimizer
    optimizer = build_optimizer(parameters, settings, run.settings.run.seed)
    if state.step:
        _restore(run, state, optimizer)
    limit = run.limits.training
    limit.rows = None if limit.batch_setting else state.rows_at_once or None
    run.model.network.train()
    while state.step < run.total_steps and not state.stopped_early:
        started = time.monotonic()
        rate = learning_rate(state.step, run.total_steps, settings)
        scale = LossScale(state.loss_scale, state.steady_steps) if run.model.dtype is torch.float16 else None
        micro_batches = run.micro_batches(state.step)
        result = take_step(
            run.model, optimizer, micro_batches, rate, settings.max_grad_norm, settings.label_smoothing, scale
        )
        if scale:
            state.loss_scale, state.steady_steps = scale.value, scale.steady_steps
        _update_counts(state, result, time.monotonic() - started)
        _log_step(run, state, result, rate, log)
        bar.advance(state.step, result.loss, result.tokens)

        is_best = _is_validation_due(run, state.step) and _validate(run, state, log, bar)
        should_stop = run.group.should_stop
        if is_best or should_stop or state.stopped_early or _is_save_due(run, state.step):
            state.rows_at_once = _synchronize_limit(limit, run.group)
            run.checkpoints.save(state, parameters, optimizer_tensors(optimizer, parameters))
        if should_stop and state.step < run.total_steps:
            raise Interrupted(f"stopped after step {state.step} of {run.total_steps}; the checkpoint is written")
    run.model.network.eval()


def _synchronize_limit(limit: RowLimit, group: ProcessGroup) -> int | None:
    """Set and return the smallest row limit of all ranks."""
    smallest = min((rows for rows in group.all_gather(limit.rows) if rows), default=None)
    if group.is_main and smallest != limit.rows:
        limit.say(f"another rank ran out of memory: every rank now computes at most {smallest} rows at once")
    limit.rows = smallest
    return smallest


def _restore(run: TrainingRun, state: TrainingState, optimizer: torch.optim.Optimizer) -> None:
    _, weights, moments = run.checkpoints.read(state.step)
    load_weights(run.model, weights)
    restore_optimizer(optimizer, run.model.trainable_parameters(), moments)


def load_weights(model: Model, weights: Mapping[str, torch.Tensor]) -> None:
    """Copy stored trainable weights into the model; into this rank's shards, if it is sharded."""
    parameters = model.trainable_parameters()
    with torch.no_grad():
        for name, value in weights.items():
            local_tensor(parameters[name]).copy_(local_tensor(distribute_like(value, parameters[name])))


def _update_counts(state: TrainingState, result: StepResult, seconds: float) -> None:
    state.step += 1
    state.tokens += result.tokens
    state.completion_tokens += result.completion_tokens
    state.seconds += seconds


def _log_step(
    run: TrainingRun, state: TrainingState, result: StepResult, rate: float, log: MetricsLog | NullMetricsLog
) -> None:
    if _is_logging_due(run, state.step):
        scale = {"loss_scale": state.loss_scale} if run.model.dtype is torch.float16 else {}
        limit = run.limits.training.rows
        log.write(
            step=state.step, epoch=round(run.sampler.epoch_of(state.step), 4), loss=result.loss, learning_rate=rate,
            tokens=state.tokens, completion_tokens=state.completion_tokens, gradient_norm=result.gradient_norm,
            **scale, **({"rows_at_once": limit} if limit else {}),
        )  # fmt: skip


def _is_logging_due(run: TrainingRun, step: int) -> bool:
    settings = run.settings.validation
    if step == 1 and settings.logging_first_step:
        return True
    return step == run.total_steps or _is_due(run, step, settings.logging_strategy, settings.logging_steps)


def _is_validation_due(run: TrainingRun, step: int) -> bool:
    settings = run.settings.validation
    if settings.eval_strategy == "no" or len(run.validation_rows) == 0:
        return False
    return step == run.total_steps or _is_due(run, step, settings.eval_strategy, settings.eval_steps)


def _is_save_due(run: TrainingRun, step: int) -> bool:
    settings = run.settings.validation
    return step == run.total_steps or _is_due(run, step, settings.save_strategy, settings.save_steps)


def _is_due(run: TrainingRun, step: int, strategy: str, interval: int) -> bool:
    return strategy != "no" and step % (interval if strategy == "steps" else run.sampler.steps_per_epoch) == 0


def _validate(run: TrainingRun, state: TrainingState, log: MetricsLog | NullMetricsLog, bar: TrainingBar) -> bool:
    """Score the validation rows; return whether this is the best step so far."""
    settings = run.settings.validation
    result = run.validate()
    epoch = round(run.sampler.epoch_of(state.step), 4)
    log.write(step=state.step, epoch=epoch, eval_loss=result.loss, eval_token_accuracy=result.token_accuracy)
    previous = float("inf") if state.best_loss is None else state.best_loss
    is_best = result.loss < previous
    is_improvement = result.loss < previous - settings.threshold
    state.stale_validations = 0 if is_improvement else state.stale_validations + 1
    state.stopped_early = 0 < settings.patience <= state.stale_validations
    if is_best:
        state.best_step, state.best_loss = state.step, result.loss
    bar.print(
        f"step {state.step}  validation loss {result.loss:.4f}  token accuracy {result.token_accuracy:.1%}"
        + ("  best so far" if is_best else "")
        + (f"  stopping: {state.stale_validations} validations without improvement" if state.stopped_early else "")
    )
    return is_best
