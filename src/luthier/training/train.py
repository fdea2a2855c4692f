"""The training loop.

    for each step:  take it, log it, validate when due, save when due, stop when asked

Everything it needs is in a `Run`; everything it changes is in the model, the optimizer and the `TrainingState`.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from luthier.data.batches import Plan, collate
from luthier.data.tokens import TokenStore
from luthier.errors import Interrupted
from luthier.evaluation.likelihood import Likelihood, score_rows, total
from luthier.layers.batch import Batch
from luthier.training.checkpoint import Checkpoints, TrainingState
from luthier.training.config import Settings
from luthier.training.metrics import MetricsLog, TrainingBar
from luthier.training.optimizer import build_optimizer, learning_rate, optimizer_tensors, restore_optimizer
from luthier.training.step import StepResult, take_step
from luthier.weights.model import Model


@dataclass(slots=True)
class Run:
    """A run about to train: the model, its rows, and where it leaves its traces."""

    model: Model
    tokens: TokenStore
    plan: Plan
    validation_rows: np.ndarray
    settings: Settings
    pad_id: int
    checkpoints: Checkpoints
    say: Callable[[str], None]

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        limit = self.settings.run.max_steps
        return limit if limit > 0 else self.settings.run.epochs * self.plan.steps_per_epoch

    @property
    def packed(self) -> bool:
        return self.settings.run.packing and self.model.packs

    def window(self, step: int) -> list[Batch]:
        """The micro-batches of a step, counted from 0."""
        rows = self.plan.micro_batches(step)
        return [collate(self.tokens, batch, self.packed, self.pad_id) for batch in rows]

    def validate(self) -> Likelihood:
        """Loss and token accuracy on the validation rows."""
        self.model.network.eval()
        per_batch = self.settings.run.eval_rows_per_batch
        rows = score_rows(
            self.model, self.tokens, self.validation_rows,
            rows_per_batch=per_batch, packed=self.packed, pad_id=self.pad_id,
        )  # fmt: skip
        result = total(rows)
        self.model.network.train()
        return result


def train(run: Run, state: TrainingState, log: MetricsLog, bar: TrainingBar, stop_asked: Callable[[], bool]) -> None:
    """Train from `state` to the end; `state` is kept current. Raises Interrupted after saving when a stop was asked."""
    parameters = run.model.trainable()
    optimizer = build_optimizer(parameters, run.settings.optimizer)
    if state.step:
        _restore(run, state, optimizer)
    run.model.network.train()
    while state.step < run.total_steps and not state.stopped_early:
        started = time.monotonic()
        _seed(run.settings.run.seed, state.step)
        rate = learning_rate(state.step, run.total_steps, run.settings.optimizer)
        result = take_step(run.model, optimizer, run.window(state.step), rate, run.settings.optimizer.max_grad_norm)
        _count(state, result, time.monotonic() - started)
        _log(run, state, result, rate, log)
        bar.step(state.step, result.loss, result.tokens)

        improved = _validation_due(run, state.step) and _validate(run, state, log, bar)
        stopping = stop_asked()
        if improved or stopping or state.stopped_early or _save_due(run, state.step):
            run.checkpoints.save(state, parameters, optimizer_tensors(optimizer, parameters))
        if stopping and state.step < run.total_steps:
            raise Interrupted(f"stopped after step {state.step} of {run.total_steps}; the checkpoint is written")
    run.model.network.eval()


def _restore(run: Run, state: TrainingState, optimizer: torch.optim.Optimizer) -> None:
    _, weights, moments = run.checkpoints.read(state.step)
    load_weights(run.model, weights)
    restore_optimizer(optimizer, run.model.trainable(), moments)


def load_weights(model: Model, weights: dict[str, torch.Tensor]) -> None:
    """Copy stored trainable weights into the model."""
    parameters = model.trainable()
    with torch.no_grad():
        for name, value in weights.items():
            parameters[name].copy_(value)


def _seed(seed: int, step: int) -> None:
    """Randomness of a step is drawn from (seed, step) alone, so resuming needs no stored generator."""
    digest = hashlib.sha256(f"{seed}:{step}".encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def _count(state: TrainingState, result: StepResult, seconds: float) -> None:
    state.step += 1
    state.tokens += result.tokens
    state.completion_tokens += result.completion_tokens
    state.seconds += seconds


def _log(run: Run, state: TrainingState, result: StepResult, rate: float, log: MetricsLog) -> None:
    if state.step % run.settings.validation.logging_steps == 0 or state.step in (1, run.total_steps):
        log.write(
            step=state.step, epoch=round(run.plan.epoch_of(state.step), 4), loss=result.loss, learning_rate=rate,
            tokens=state.tokens, completion_tokens=state.completion_tokens, gradient_norm=result.gradient_norm,
        )  # fmt: skip


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


def _validate(run: Run, state: TrainingState, log: MetricsLog, bar: TrainingBar) -> bool:
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
