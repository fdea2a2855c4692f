"""Memory that does not suffice: how it shows, and going on with fewer rows at once.

What is computed row by row (a gradient, a score, an answer) comes out the same however many rows are worked on at once,
so a failed allocation costs time and nothing else. It knows rows by number, nothing of what they are.
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

Row = TypeVar("Row")
Result = TypeVar("Result")
# How allocators that raise a bare RuntimeError say it: PyTorch's on CPUs, MPS, CUDA and its libraries, C++ itself;
# oneDNN has no other words for it.
PHRASES = (
    "can't allocate memory", "not enough memory", "out of memory", "std::bad_alloc", "ALLOC_FAILED",
    "could not create a primitive", "could not execute a primitive", "could not create a memory",
)  # fmt: skip
OUT_OF_MEMORY_ADVICE = "lower max_input_length, take a smaller model, or a machine with more memory"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory did not suffice."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(phrase in str(error) for phrase in PHRASES)


def free_memory() -> None:
    """Give back what a failed attempt still holds: cycles first, then the devices' own caches."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()


@contextmanager
def report_out_of_memory(work: str, advice: str = OUT_OF_MEMORY_ADVICE) -> Iterator[None]:
    """Turn an allocation that fails inside, where fewer rows would not help, into a CapacityError."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise CapacityError(f"out of memory while {work}; {advice}") from error


def print_to_stderr(text: str) -> None:
    """Say it to whoever watches."""
    sys.stderr.write(text + "\n")


@dataclass(slots=True, kw_only=True)
class RowLimit:
    """The number of rows that fit in memory at once for one kind of work; `rows` is None until something did not fit.

    `work` names the work in messages; `advice` says what to change when not even one row fits; `say` gets a message
    at each halving. `batch_setting` is set for work that this process cannot split alone: the setting that splits it.
    """

    work: str
    advice: str = OUT_OF_MEMORY_ADVICE
    say: Callable[[str], None] = print_to_stderr
    batch_setting: str = ""
    rows: int | None = None

    def cap(self, count: int) -> int:
        """Rows to take at once out of `count`."""
        return count if self.rows is None else min(count, self.rows)

    def halve(self, tried: int) -> None:
        """Take half of the `tried` rows from now on. CapacityError when it was one, or cannot be cut."""
        if self.batch_setting:
            raise CapacityError(
                f"out of memory while {self.work} {tried} rows at once, and ranks that share one model must take the "
                f"same steps: lower {self.batch_setting}, and resume from the last checkpoint"
            )
        if tried <= 1:
            raise CapacityError(f"out of memory while {self.work} one row at a time; {self.advice}")
        self.rows = (tried + 1) // 2
        self.say(
            f"out of memory while {self.work} {tried} rows at once: {self.rows} at once from now on, with the same "
            "result"
        )


def map_chunks(rows: Sequence[Row], limit: RowLimit, work: Callable[[Sequence[Row]], Result]) -> Iterator[Result]:
    """`work` on `rows`, as many at once as fit, in order; what did not fit is done again in halves."""
    start = 0
    while start < len(rows):
        portion = rows[start : start + limit.cap(len(rows))]
        try:
            result = work(portion)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        else:
            yield result
            start += len(portion)
            continue
        # Only here, with the error gone, is what its frames held free.
        free_memory()
        limit.halve(len(portion))
