"""Luthier: fine-tune foundation models on your own hardware.

    import luthier

    run = luthier.tune("rows/", epoch=3)    # a Run: metrics, report, generate, evaluate, compare, export, resume
    run.generate("2 + 2?")

`tune`, `inspect`, `generate`, `evaluate` and `models` take what the commands of the same names take; `connect` gives a
boto3 session for a running service. Importing the package imports nothing else until one of them is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from luthier import errors
    from luthier.python_api.connect import connect
    from luthier.python_api.models import models
    from luthier.python_api.run import Run
    from luthier.python_api.score import evaluate, generate, inspect
    from luthier.python_api.tune import tune

__version__ = "0.3.0"
__all__ = ["Run", "__version__", "connect", "errors", "evaluate", "generate", "inspect", "models", "tune"]

_MODULES = {
    "Run": "run",
    "connect": "connect",
    "evaluate": "score",
    "generate": "score",
    "inspect": "score",
    "models": "models",
    "tune": "tune",
}
"""Public name -> the module of luthier.python_api that defines it."""


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name == "errors":
        return importlib.import_module("luthier.errors")
    if name not in _MODULES:
        raise AttributeError(f"module 'luthier' has no attribute {name!r}")
    return getattr(importlib.import_module(f"luthier.python_api.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
