"""The machine that a bench ran on: what it is, what else ran on it, and the versions of what was measured."""

from __future__ import annotations

import hashlib
import os
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch

import luthier

LIBRARIES = ("torch", "transformers", "peft", "tokenizers", "numpy", "pyarrow")


def describe() -> dict[str, Any]:
    """Facts for the record."""
    return {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "cores_of_machine": os.cpu_count(),
        "bf16_instructions": _bf16(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "luthier_source": source(),
        "load_before": [round(value, 2) for value in os.getloadavg()],
        "system": platform.platform(),
        "python": platform.python_version(),
        # Luthier's own as its source says it: an editable install's metadata keeps the number it was installed with.
        "versions": {"luthier": luthier.__version__} | {name: found for name in LIBRARIES if (found := _version(name))},
    }


def source() -> str:
    """A short digest of Luthier's own source, as it lies on the disk now: a race is one state of it or none."""
    digest = hashlib.sha256()
    package = Path(luthier.__file__).parent
    for path in sorted(package.rglob("*.py")):
        digest.update(str(path.relative_to(package)).encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def headline(facts: dict[str, Any]) -> str:
    """The machine in a line."""
    gpu = f", {facts['gpu']}" if facts["gpu"] else ""
    return (f"{facts['processor']}, {facts['cores']} of {facts['cores_of_machine']} cores, bf16 by "
            f"{facts['bf16_instructions']}, {facts['memory_gb']:.0f} GB{gpu}; {facts['date']}; load before: "
            f"{facts['load_before'][0]}")  # fmt: skip


def memory_budget() -> float:
    """Bytes that the contenders may hold together: 60 % of what is free."""
    return 0.6 * float(psutil.virtual_memory().available)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()


def _bf16() -> str:
    try:
        flags = Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:
        return "what torch finds"
    for flag, name in (("amx_bf16", "AMX"), ("avx512_bf16", "AVX-512")):
        if flag in flags:
            return name
    return "emulation"
