"""`luthier doctor`: the hardware and software that a run can use, as a table or JSON.

    python -m luthier.training.doctor          reads {"json": bool} from standard input when it is not a terminal

It only reports, and always exits 0. Sizes are in bytes.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from luthier import __version__, allocator, entrypoint
from luthier.home import cache_root

LIBRARIES = ("torch", "transformers", "tokenizers", "peft", "safetensors", "numpy", "pyarrow", "huggingface_hub")
EXTRAS = {"s3": ("boto3",), "quant": ("bitsandbytes",), "dev": ("pytest", "mypy", "ruff")}
CPU_FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile", "asimd", "bf16")


def survey() -> dict[str, dict[str, Any]]:
    """The machine's hardware and software, by group."""
    return {
        "luthier": {"version": __version__, "python": platform.python_version(), "platform": platform.platform()},
        "devices": _devices(),
        "processor": _processor(),
        "memory": _memory(),
        "disk": _disk(),
        "tools": _tools(),
        "libraries": {name: _version(name) for name in LIBRARIES},
        "extras": {name: all(map(_version, needed)) for name, needed in EXTRAS.items()},
        "variables": _variables(),
    }


def _variables() -> dict[str, str]:
    """Luthier's own environment variables, without secrets, user names and passwords."""
    own = {name: value for name, value in sorted(os.environ.items()) if name.startswith("LUTHIER_")}
    shown = {name: re.sub(r"//[^/@\s]+@", "//***@", value) for name, value in own.items()}
    return shown | {"HF_TOKEN": "set" if os.environ.get("HF_TOKEN") else "not set"}


def _devices() -> dict[str, Any]:
    devices: dict[str, Any] = {"cpu": platform.machine()}
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        major, minor = torch.cuda.get_device_capability(index)
        devices[f"cuda:{index}"] = {
            "name": properties.name,
            "memory": properties.total_memory,
            "capability": f"{major}.{minor}",
            "bf16": torch.cuda.is_bf16_supported(including_emulation=False),
        }
    if torch.backends.mps.is_available():
        devices["mps"] = "available"
    devices["torch build"] = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"
    return devices


def _processor() -> dict[str, Any]:
    model, flags = "", set()
    if Path("/proc/cpuinfo").exists():
        for line in Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines():
            name, _, value = (part.strip() for part in line.partition(":"))
            model = value if name == "model name" and not model else model
            flags |= set(value.split()) if name in ("flags", "Features") else set()
    return {
        "model": model or platform.processor() or platform.machine(),
        "cores usable": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "features": [name for name in CPU_FEATURES if name in flags],
        "torch threads": torch.get_num_threads(),
        "fast bf16": bool({"avx512_bf16", "amx_bf16", "bf16"} & flags),
    }


def _memory() -> dict[str, Any]:
    memory = psutil.virtual_memory()
    return {"total": memory.total, "available": memory.available, "limit of this container": _container_limit()}


def _container_limit() -> int | None:
    """The cgroup's memory limit (v2, then v1), None when there is none: psutil sees only the machine's memory."""
    for path in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        if path.exists():
            text = path.read_text("ascii").strip()
            if text.isdigit() and int(text) < 1 << 60:
                return int(text)
    return None


def _disk() -> dict[str, Any]:
    cache = cache_root().absolute()
    return {
        "free here": shutil.disk_usage(Path.cwd()).free,
        "cache": str(cache),
        "cache writable": _is_writable(cache),
        "cache free": shutil.disk_usage(_existing(cache)).free,
        "temporary folder": tempfile.gettempdir(),
    }


def _existing(path: Path) -> Path:
    return next(folder for folder in (path, *path.parents) if folder.exists())


def _is_writable(folder: Path) -> bool:
    """Write a file: permissions do not reveal read-only or full file systems."""
    try:
        with tempfile.TemporaryFile(dir=_existing(folder)):
            return True
    except OSError:
        return False


def _tools() -> dict[str, Any]:
    compiler = next((path for name in ("c++", "g++", "clang++") if (path := shutil.which(name))), None)
    return {"C++ compiler": compiler, "tcmalloc": _tcmalloc(), "nvidia-smi": shutil.which("nvidia-smi")}


def _tcmalloc() -> str:
    """Whether the faster allocator is in use, or its path."""
    if "tcmalloc" in os.environ.get("LD_PRELOAD", ""):
        return "in use"
    path = allocator.find_tcmalloc()
    return f"not in use: {path}" if path else "not installed: libtcmalloc-minimal4 makes a CPU train faster"


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def show(groups: dict[str, dict[str, Any]]) -> Table:
    """The survey as a table, sizes in GB."""
    table = Table(title="What this machine offers", title_justify="left", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for group, values in groups.items():
        table.add_section()
        table.add_row(f"[bold]{group}[/]")
        for name, value in values.items():
            table.add_row(f"  {name}", escape(_format(value)))
    return table


def _format(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_format(inner)}" for name, inner in value.items())
    if isinstance(value, list):
        return ", ".join(map(_format, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "none"
    return f"{value / 1e9:.1f} GB" if isinstance(value, int) and value >= 1_000_000 else str(value)


def main() -> None:
    """Read the request from standard input, if there is one, and print the survey."""
    text = "" if sys.stdin is None or sys.stdin.isatty() else sys.stdin.read()
    wants_json = "--json" in sys.argv or bool(json.loads(text or "{}").get("json"))
    if wants_json:
        print(json.dumps(survey(), indent=1))  # noqa: T201
    else:
        Console(highlight=False).print(show(survey()))


if __name__ == "__main__":
    entrypoint.run(main)
