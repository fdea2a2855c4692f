"""The outermost door of every Luthier process: errors become one line and an exit code, never a traceback."""

from __future__ import annotations

import gc
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from luthier.errors import LuthierError

# Read by libraries when they are imported, so set before that; what the user has set stays.
DEFAULTS = {
    # Their warnings are of what is done on purpose.
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "true",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    # OpenMP threads that wait spin 300,000 times by default: beside another busy process the cores are burnt in waiting
    # (a run took 88 s instead of 30 s). A short spin costs nothing measurable on an idle machine.
    "GOMP_SPINCOUNT": "5000",
    # oneDNN compiles a product for each shape and keeps 1,024 of them, twice, while packed rows have a new shape each
    # step: seven steps of a 135M model in bf16 took 1.69 GB, and 1.56 GB with this.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128",
    "LRU_CACHE_CAPACITY": "128",
}


def run(main: Callable[[], None]) -> None:
    """Call `main` and leave the process with the exit code that fits; LUTHIER_DEBUG=1 shows tracebacks."""
    try:
        main()
    except LuthierError as error:
        sys.exit(refuse(error))
    except KeyboardInterrupt:
        print("luthier: stopped", file=sys.stderr)  # noqa: T201
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output is gone; nothing is left to say to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except Exception as error:
        sys.exit(fail(error))


@contextmanager
def loading() -> Iterator[None]:
    """Import heavy libraries inside: a sixth faster, for what they leave in memory stays, and nothing looks it through
    for garbage, now or later.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def refuse(error: LuthierError) -> int:
    """Print a known error, each of its lines marked; return its exit code."""
    for line in str(error).splitlines():
        print(f"luthier: error: {line}", file=sys.stderr)  # noqa: T201
    return error.exit_code


def fail(error: Exception) -> int:
    """Print an error nobody foresaw; return exit code 1."""
    if os.environ.get("LUTHIER_DEBUG"):
        traceback.print_exception(error)
    else:
        first = (str(error).strip().splitlines() or [""])[0]
        hint = "LUTHIER_DEBUG=1 shows the traceback; please report it"
        print(f"luthier: internal error: {type(error).__name__}: {first} ({hint})", file=sys.stderr)  # noqa: T201
    return 1


for _name, _value in DEFAULTS.items():
    os.environ.setdefault(_name, _value)
