"""Preloads tcmalloc into the engine's programs if it is installed: it is faster than glibc for CPU training threads.

LUTHIER_ALLOCATOR: auto (the default) uses tcmalloc if it is found, system keeps the C library's allocator.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from luthier.errors import SettingError, did_you_mean

CHOICES = ("auto", "system")
_NAMES = ("libtcmalloc_minimal.so.4", "libtcmalloc.so.4")
_FOLDERS = tuple(
    Path(root, folder)
    for root in ("/usr/local/lib", "/usr/lib", "/usr/lib64")
    for folder in ("", "x86_64-linux-gnu", "aarch64-linux-gnu")
)


def find_tcmalloc(folders: Iterable[Path] = _FOLDERS) -> Path | None:
    """Return the path of tcmalloc's library, or None."""
    return next((folder / name for folder in folders for name in _NAMES if (folder / name).exists()), None)


def preload(environment: Mapping[str, str], folders: Iterable[Path] = _FOLDERS) -> dict[str, str]:
    """Return variables to add to an engine program's environment; none if the user already preloads a library."""
    choice = environment.get("LUTHIER_ALLOCATOR", "auto")
    if choice not in CHOICES:
        raise SettingError(
            f"LUTHIER_ALLOCATOR={choice}{did_you_mean(choice, CHOICES)}; expected one of {', '.join(CHOICES)}"
        )
    library = find_tcmalloc(folders) if choice == "auto" and sys.platform == "linux" else None
    return {"LD_PRELOAD": str(library)} if library and not environment.get("LD_PRELOAD") else {}
