"""Entry point of every Luthier program: sets environment defaults, turns an error into one line and an exit code."""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from luthier.errors import DataError, LuthierError
from luthier.exhaustion import capacity_error

ERROR_FILE = "LUTHIER_ERROR_FILE"
"""Set by the Python API: the file that `run` writes an error to, as JSON {"classes", "message", "problems"}."""
END_WITH_PARENT = "LUTHIER_END_WITH_PARENT"
"""Set by the Python API: its process id; `run` sends this process SIGTERM when that one ends."""

# Libraries read these when they are imported, so they are set before; values that the user has set stay.
DEFAULTS = {
    # Luthier does on purpose what transformers warns about.
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "true",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    # A waiting OpenMP thread spins 300,000 times by default and takes cores from other busy processes: a run took
    # 88 s instead of 30 s. A short spin costs nothing measurable on an idle machine.
    "GOMP_SPINCOUNT": "5000",
    # oneDNN compiles a matmul for each shape and caches 1,024 of them, twice; packed batches have a new shape at each
    # step. Seven steps of a 135M model in bf16 took 1.69 GB, and 1.56 GB with this limit.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128",
    "LRU_CACHE_CAPACITY": "128",
}


def run(main: Callable[[], None]) -> None:
    """Call `main`; on an error print it and exit with its code. LUTHIER_DEBUG=1 shows the traceback."""
    parent = os.environ.pop(END_WITH_PARENT, "")
    if parent:
        threading.Thread(target=_end_with_parent, args=(int(parent),), daemon=True).start()
    try:
        main()
    except LuthierError as error:
        sys.exit(print_error(capacity_error(error) or error))
    except KeyboardInterrupt:
        print("luthier: stopped", file=sys.stderr)  # noqa: T201
        sys.exit(130)
    except BrokenPipeError:
        # The reader of the output has closed it; replacing stdout keeps the interpreter's last flush silent.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except Exception as error:
        exhausted = capacity_error(error)
        sys.exit(print_internal_error(error) if exhausted is None else print_error(exhausted))


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Context for heavy imports: disables garbage collection, then freezes the new objects. A sixth faster."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _end_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)


def print_error(error: LuthierError) -> int:
    """Print an expected error, each line prefixed; return its exit code."""
    if path := os.environ.get(ERROR_FILE):
        classes = [base.__name__ for base in type(error).__mro__]
        problems = [asdict(problem) for problem in error.problems] if isinstance(error, DataError) else []
        Path(path).write_text(json.dumps({"classes": classes, "message": str(error), "problems": problems}), "utf-8")
    for line in str(error).splitlines():
        print(f"luthier: error: {line}", file=sys.stderr)  # noqa: T201
    return error.exit_code


def print_internal_error(error: Exception) -> int:
    """Print an unexpected error; return exit code 1."""
    if os.environ.get("LUTHIER_DEBUG"):
        traceback.print_exception(error)
    else:
        summary = (str(error).strip().splitlines() or [""])[0]
        hint = "LUTHIER_DEBUG=1 shows the traceback; please report it"
        print(f"luthier: internal error: {type(error).__name__}: {summary} ({hint})", file=sys.stderr)  # noqa: T201
    return 1


for _name, _value in DEFAULTS.items():
    os.environ.setdefault(_name, _value)
