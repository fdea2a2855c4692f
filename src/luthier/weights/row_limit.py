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
ADVICE = "lower max_input_length, take a smaller model, or a machine with more memory"


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory did not suffice."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(phrase in str(error) for phrase in PHRASES)


def release() -> None:
    """Give back what a failed attempt still holds: cycles first, then the devices' own caches."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()


@contextmanager
def needed_for(work: str, advice: str = ADVICE) -> Iterator[None]:
    """Turn an allocation that fails inside, where fewer rows would not help, into a CapacityError."""
    try:
        yield
    except Exception as error:
        if not out_of_memory(error):
            raise
        raise CapacityError(f"out of memory while {work}; {advice}") from error


def to_stderr(text: str) -> None:
    """Say it to whoever watches."""
    sys.stderr.write(text + "\n")


@dataclass(slots=True)
class RowLimit:
    """The most rows that one kind of work found room for; `rows` is None until something did not fit.

    `work` names it in messages; `advice` says what to change when not even one row fits; `say` hears of each halving.
    `whole` names, for work that this process cannot cut on its own, the setting that cuts it.
    """

    work: str
    advice: str = ADVICE
    say: Callable[[str], None] = to_stderr
    whole: str = ""
    rows: int | None = None

    def of(self, asked: int) -> int:
        """Rows to take at once where `asked` are wanted."""
        return asked if self.rows is None else min(asked, self.rows)

    def halve(self, tried: int) -> None:
        """Take half of the `tried` rows from now on. CapacityError when it was one, or cannot be cut."""
        if self.whole:
            raise CapacityError(
                f"out of memory while {self.work} {tried} rows at once, and ranks that share one model must take the "
                f"same steps: lower {self.whole}, and resume from the last checkpoint"
            )
        if tried <= 1:
            raise CapacityError(f"out of memory while {self.work} one row at a time; {self.advice}")
        self.rows = (tried + 1) // 2
        self.say(
            f"out of memory while {self.work} {tried} rows at once: {self.rows} at once from now on, with the same "
            "result"
        )


def in_portions(rows: Sequence[Row], limit: RowLimit, work: Callable[[Sequence[Row]], Result]) -> Iterator[Result]:
    """`work` on `rows`, as many at once as fit, in order; what did not fit is done again in halves."""
    start = 0
    while start < len(rows):
        portion = rows[start : start + limit.of(len(rows))]
        try:
            result = work(portion)
        except Exception as error:
            if not out_of_memory(error):
                raise
        else:
            yield result
            start += len(portion)
            continue
        # Only here, with the error gone, is what its frames held free.
        release()
        limit.halve(len(portion))
