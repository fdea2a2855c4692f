"""A step that does not fit in memory: its micro-batches are cut smaller, and the step is computed again from its start.

    8 rows    out of memory
    4 + 4     the gradient of the same 8 rows, weighted by the labels of all 8 as before

It starts again because a backward pass that fails may have added part of its gradient already. What was found to fit
is kept for the run, and in its checkpoints. One thing is no sum over rows and follows the cut, as it follows the size
of a micro-batch anywhere: the load-balancing loss of a mixture of experts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from luthier.layers.batch import Batch
from luthier.training.config import TrainingSettings
from luthier.weights.row_limit import ADVICE, RowLimit, out_of_memory, release

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class RowLimits:
    """What fits at once in each kind of a run's work."""

    training: RowLimit
    scoring: RowLimit
    answering: RowLimit


def row_limits(settings: TrainingSettings, sharded: bool, say: Callable[[str], None]) -> RowLimits:
    """Limits of a run, none reached yet. `sharded`: no rank can cut its rows without the others."""
    changes = ["lower max_input_length"]
    if not settings.run.gradient_checkpointing:
        changes.append("set gradient_checkpointing=True")
    if not settings.method.lora and not settings.optimizer.in_bf16:
        changes.append("set optim=adamw_bf16" + ("" if settings.run.precision == "bf16" else " and bf16=True"))
    if not settings.method.lora:
        changes.append("set peft_type=lora")
    elif settings.method.bits == 16:
        changes.append("set bits=4")
    advice = ", ".join([*changes, "or take a smaller model"])
    rows = "per_device_train_batch_size (gradient_accumulation_steps makes up for it)"
    return RowLimits(
        RowLimit("training on", advice, say, rows if sharded else ""),
        RowLimit("scoring", ADVICE, say, "per_device_eval_batch_size" if sharded else ""),
        RowLimit("answering", ADVICE, say, "max_input_length, or --score-rows" if sharded else ""),
    )


def unfound(settings: TrainingSettings, sharded: bool) -> list[str]:
    """What to say of auto_find_batch_size where ranks share one model."""
    if settings.run.find_batch and sharded:
        return ["auto_find_batch_size has no effect with enable_fsdp on several ranks: one cannot cut its rows alone"]
    return []


@dataclass(frozen=True, slots=True)
class BatchSplitter:
    """Cuts micro-batches down to what fits. `collate` builds the micro-batch of some rows."""

    limit: RowLimit
    collate: Callable[[list[int]], Batch]

    def fitting(
        self, batches: Sequence[Batch], attempt: Callable[[Sequence[Batch]], Result], undo: Callable[[], None]
    ) -> Result:
        """What `attempt` makes of all `batches`, cut as finely as memory asks; `undo` takes back what a failed one did.

        CapacityError when not even one row at a time fits.
        """
        while True:
            parts = [part for batch in batches for part in self._cut(batch)]
            try:
                return attempt(parts)
            except Exception as error:
                if not out_of_memory(error):
                    raise
            undo()
            release()  # only here, with the error gone, is what its frames held free
            self.limit.halve(max(len(part.rows) for part in parts))

    def _cut(self, batch: Batch) -> list[Batch]:
        size = self.limit.of(len(batch.rows))
        if size >= len(batch.rows):
            return [batch]
        return [self.collate(list(batch.rows[at : at + size])) for at in range(0, len(batch.rows), size)]
