"""Out-of-memory errors: detect them, and retry with fewer rows at once.

Results that are computed row by row (gradients, scores, generated tokens) do not depend on how many rows are computed
at once, so a failed allocation costs time and nothing else.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch

from luthier.errors import CapacityError
from luthier.exhaustion import MEMORY_PHRASES

Row = TypeVar("Row")
Result = TypeVar("Result")
OUT_OF_MEMORY_ADVICE = "lower max_input_length, take a smaller model, or a machine with more memory"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is a failed memory allocation."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(phrase in str(error) for phrase in MEMORY_PHRASES)


def free_memory() -> None:
    """Free the memory of a failed attempt: collect reference cycles, then empty the devices' caches."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()


@contextmanager
def report_out_of_memory(work: str, advice: str = OUT_OF_MEMORY_ADVICE) -> Iterator[None]:
    """Turn an out-of-memory error into a CapacityError, where fewer rows would not help."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise CapacityError(f"out of memory while {work}; {advice}") from error


def print_to_stderr(text: str) -> None:
    """Write a line to standard error."""
    sys.stderr.write(text + "\n")


@dataclass(slots=True, kw_only=True)
class RowLimit:
    """The number of rows that fit in memory at once for one kind of work; `rows` is None until one fails.

    `work` names the work in messages; `advice` says what to change when a single row does not fit; `say` gets a message
    at each halving. `batch_setting` is the setting that splits the work where this process cannot split it alone.
    """

    work: str
    advice: str = OUT_OF_MEMORY_ADVICE
    say: Callable[[str], None] = print_to_stderr
    batch_setting: str = ""
    rows: int | None = None

    def cap(self, count: int) -> int:
        """Rows to compute at once, of `count`."""
        return count if self.rows is None else min(count, self.rows)

    def halve(self, failed_rows: int) -> None:
        """Halve the limit after `failed_rows` rows did not fit. CapacityError for one row, or with `batch_setting`."""
        if self.batch_setting:
            raise CapacityError(
                f"out of memory while {self.work} {failed_rows} rows at once, and ranks that share one model must take "
                f"the same steps: lower {self.batch_setting}, and resume from the last checkpoint"
            )
        if failed_rows <= 1:
            raise CapacityError(f"out of memory while {self.work} one row at a time; {self.advice}")
        self.rows = (failed_rows + 1) // 2
        self.say(
            f"out of memory while {self.work} {failed_rows} rows at once: {self.rows} at once from now on, with the "
            "same result"
        )


def map_chunks(rows: Sequence[Row], limit: RowLimit, work: Callable[[Sequence[Row]], Result]) -> Iterator[Result]:
    """Apply `work` to chunks of `rows`, in order; a chunk that does not fit in memory is retried in halves."""
    start = 0
    while start < len(rows):
        chunk = rows[start : start + limit.cap(len(rows))]
        try:
            result = work(chunk)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        else:
            yield result
            start += len(chunk)
            continue
        free_memory()  # outside the except block: the error's frames hold tensors
        limit.halve(len(chunk))
