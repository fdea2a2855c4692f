"""Recognizes errors for lack of memory or threads, whatever library raised them, and names the limit that was reached.

Libraries wrap such errors ("cannot load the model: ..."), so the causes of an error are examined, too.
"""

from __future__ import annotations

import errno
import resource
from collections.abc import Iterator

from luthier.errors import CapacityError

# From PyTorch's allocators for CPUs, MPS and CUDA, CUDA's libraries, C++, oneDNN and the C library.
MEMORY_PHRASES = (
    "can't allocate memory", "not enough memory", "out of memory", "std::bad_alloc", "ALLOC_FAILED",
    "could not create a primitive", "could not execute a primitive", "could not create a memory",
    "Cannot allocate memory", "memory allocation of",
)  # fmt: skip
# From Python, OpenMP, OpenBLAS and Rust's thread pool.
THREAD_PHRASES = (
    "can't start new thread", "Thread creation failed", "pthread_create failed", "failed to spawn thread",
    "could not be created: ThreadPoolBuildError",
)  # fmt: skip
_MEMORY_ADVICE = "take a smaller model, lower max_input_length, or give the process more memory"


def capacity_error(error: BaseException) -> CapacityError | None:
    """The error to report in place of `error`, if memory or threads ran out; None for another error."""
    if isinstance(error, CapacityError):
        return error
    for cause in _causes(error):
        if isinstance(cause, CapacityError):
            return cause
        if isinstance(cause, MemoryError) or (isinstance(cause, OSError) and cause.errno == errno.ENOMEM):
            return CapacityError(_memory_text())
        if isinstance(cause, BlockingIOError) and cause is error:  # of fork; one below an error is of a lock
            return CapacityError(_threads_text())
        if isinstance(cause, RuntimeError | OSError) and (text := describe_exhaustion(str(cause))):
            return CapacityError(text)
    return None


def describe_exhaustion(text: str) -> str:
    """What ran out, if `text`, a message or a line of a log, says that memory or threads did; empty otherwise."""
    if any(phrase in text for phrase in THREAD_PHRASES):
        return _threads_text()
    if any(phrase in text for phrase in MEMORY_PHRASES):
        return _memory_text()
    return ""


def _causes(error: BaseException) -> Iterator[BaseException]:
    """`error`, then what caused it, also where the library suppressed it."""
    known: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in known:
        known.add(id(cause))
        yield cause
        cause = cause.__cause__ or cause.__context__


def _memory_text() -> str:
    return f"out of memory{_limit('RLIMIT_AS')}; {_MEMORY_ADVICE}"


def _threads_text() -> str:
    limits = f"{_limit('RLIMIT_NPROC')}{_limit('RLIMIT_AS')}"
    return f"no more threads can be started{limits}; raise the limit of processes (ulimit -u, a container's pids limit)"


def _limit(name: str) -> str:
    """This process's limit, in words; empty if it has none."""
    value = resource.getrlimit(getattr(resource, name))[0]
    if value == resource.RLIM_INFINITY:
        return ""
    if name == "RLIMIT_AS":
        return f": the address space is limited to {value / (1 << 30):.1f} GiB (--limit memory, ulimit -v)"
    return f": this user may have {value:,} processes and threads"
