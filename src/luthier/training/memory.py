"""Recomputing a step that does not fit in memory, in smaller micro-batches.

    8 rows    out of memory
    4 + 4     the gradient of the same 8 rows, weighted by the labels of all 8 as before

The whole step is recomputed because a failed backward pass may have accumulated part of its gradient already. The size
that fits is kept for the run, and in its checkpoints. The load-balancing loss of a mixture of experts is not a sum over
rows: it depends on the split, as it always depends on the micro-batch size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from luthier.layers.batch import Batch
from luthier.training.config import TrainingSettings
from luthier.weights.row_limit import OUT_OF_MEMORY_ADVICE, RowLimit, free_memory, is_out_of_memory

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class RowLimits:
    """The number of rows that fit in memory at once, by kind of work."""

    training: RowLimit
    scoring: RowLimit
    generation: RowLimit


def row_limits(settings: TrainingSettings, is_sharded: bool, warn: Callable[[str], None]) -> RowLimits:
    """The initial limits of a run. `is_sharded`: no rank can split its rows without the others."""
    changes = ["lower max_input_length"]
    if not settings.run.gradient_checkpointing:
        changes.append("set gradient_checkpointing=True")
    if not settings.method.lora and not settings.optimizer.in_bf16:
        changes.append("set optim=adamw_bf16" + ("" if settings.run.precision == "bf16" else " and bf16=True"))
    if not settings.method.lora:
        changes.append("set peft_type=lora")
    elif settings.method.bits == 16:
        changes.append("set bits=4")
    advice = ", ".join([*changes, "or use a smaller model"])
    rows = "per_device_train_batch_size (gradient_accumulation_steps makes up for it)"
    return RowLimits(
        RowLimit(work="training on", advice=advice, say=warn, batch_setting=rows if is_sharded else ""),
        RowLimit(
            work="scoring",
            advice=OUT_OF_MEMORY_ADVICE,
            say=warn,
            batch_setting="per_device_eval_batch_size" if is_sharded else "",
        ),
        RowLimit(
            work="answering",
            advice=OUT_OF_MEMORY_ADVICE,
            say=warn,
            batch_setting="max_input_length, or --score-rows" if is_sharded else "",
        ),
    )


@dataclass(frozen=True, slots=True)
class BatchSplitter:
    """Splits micro-batches into parts that fit in memory. `collate` builds the micro-batch of some rows."""

    limit: RowLimit
    collate: Callable[[list[int]], Batch]

    def run(
        self, batches: Sequence[Batch], compute: Callable[[Sequence[Batch]], Result], reset: Callable[[], None]
    ) -> Result:
        """Return `compute(batches)`, with the batches split as finely as memory requires.

        `reset` undoes the effects of a failed attempt. CapacityError when not even one row at a time fits.
        """
        while True:
            parts = [part for batch in batches for part in self._split(batch)]
            try:
                return compute(parts)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
            reset()
            free_memory()  # outside of the except block, where the error's frames no longer hold memory
            self.limit.halve(max(len(part.rows) for part in parts))

    def _split(self, batch: Batch) -> list[Batch]:
        size = self.limit.cap(len(batch.rows))
        if size >= len(batch.rows):
            return [batch]
        return [self.collate(list(batch.rows[at : at + size])) for at in range(0, len(batch.rows), size)]
