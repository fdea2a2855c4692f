"""Errors for lack of memory or threads are named as such, also where a library calls them a fault of the model."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from luthier.errors import CapacityError, ModelNotFoundError, UserError
from luthier.exhaustion import capacity_error, describe_exhaustion

# Starts threads, or allocates, until the address space is used up.
_PROGRAM = """
import resource, threading
from luthier import entrypoint
from luthier.errors import UserError
def threads():
    threading.stack_size(64 << 20)
    stop = threading.Event()
    while True:
        threading.Thread(target=stop.wait, daemon=True).start()
def memory():
    try:
        bytearray(4 << 30)
    except MemoryError as error:
        raise UserError("FOLDER: the model cannot be loaded") from error
def main():
    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
    {what}()
entrypoint.run(main)
"""


def _wrapped(cause: BaseException) -> BaseException:
    try:
        try:
            raise cause
        except Exception:
            raise ModelNotFoundError("FOLDER: no usable tokenizer") from None
    except ModelNotFoundError as error:
        return error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), "out of memory"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "out of memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "out of memory"),
        (RuntimeError("can't start new thread"), "no more threads can be started"),
        (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), "no more threads can be started"),
        (_wrapped(BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")), ""),  # a lock that is held
        (_wrapped(MemoryError()), "out of memory"),
        (_wrapped(RuntimeError("std::bad_alloc")), "out of memory"),
        (CapacityError("out of memory while training one row"), "out of memory while training one row"),
        (UserError("rows.jsonl:3: the text 'out of memory' is no label"), ""),
        (ValueError("not enough memory is a phrase of a row"), ""),
        (RuntimeError("shapes differ"), ""),
    ],
)
def test_a_capacity_error_is_recognized_below_other_errors(error: BaseException, expected: str) -> None:
    exhausted = capacity_error(error)
    assert (str(exhausted) if exhausted else "").startswith(expected)
    assert bool(exhausted) == bool(expected)


def test_lines_of_native_libraries_are_recognized() -> None:
    assert describe_exhaustion("libgomp: Thread creation failed: Resource temporarily unavailable").startswith(
        "no more"
    )
    assert describe_exhaustion("OpenBLAS blas_thread_init: pthread_create failed for thread 3").startswith("no more")
    assert describe_exhaustion("terminate called after throwing 'std::bad_alloc'").startswith("out of memory")
    assert describe_exhaustion("step 7  loss 0.1") == ""


@pytest.mark.skipif(sys.platform != "linux", reason="macOS does not enforce RLIMIT_AS")
@pytest.mark.parametrize(
    ("what", "expected"), [("threads", "no more threads can be started"), ("memory", "out of memory")]
)
def test_a_program_names_the_limit_it_reached(tmp_path: Path, what: str, expected: str) -> None:
    program = tmp_path / "program.py"
    program.write_text(_PROGRAM.replace("{what}", what))
    ended = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, check=False, timeout=60)
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"luthier: error: {expected}")
    assert "the address space is limited to 1.0 GiB (--limit memory, ulimit -v)" in ended.stderr
    assert ended.stderr.count("\n") == 1
