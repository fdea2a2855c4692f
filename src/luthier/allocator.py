"""tcmalloc for the engine's programs, where it is installed: glibc's allocator costs threads that train on a CPU time.

LUTHIER_ALLOCATOR: auto (the default) takes tcmalloc where it is found, system leaves the C library's.
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


def find(folders: Iterable[Path] = _FOLDERS) -> Path | None:
    """tcmalloc's library on this machine, or None."""
    return next((folder / name for folder in folders for name in _NAMES if (folder / name).exists()), None)


def preload(environment: Mapping[str, str], folders: Iterable[Path] = _FOLDERS) -> dict[str, str]:
    """What to add to the environment of a program of the engine; nothing where the user preloads something already."""
    chosen = environment.get("LUTHIER_ALLOCATOR", "auto")
    if chosen not in CHOICES:
        raise SettingError(
            f"LUTHIER_ALLOCATOR={chosen}{did_you_mean(chosen, CHOICES)}; expected one of {', '.join(CHOICES)}"
        )
    found = find(folders) if chosen == "auto" and sys.platform == "linux" else None
    return {"LD_PRELOAD": str(found)} if found and not environment.get("LD_PRELOAD") else {}
