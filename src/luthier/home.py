"""Folders of Luthier on this machine, set by environment variables."""

from __future__ import annotations

import os
from pathlib import Path


def cache_root() -> Path:
    """Return the folder of tokenized data and converted weights: $LUTHIER_CACHE, else ~/.cache/luthier."""
    path = os.environ.get("LUTHIER_CACHE")
    return Path(path).expanduser() if path else Path.home() / ".cache" / "luthier"


def home_root() -> Path:
    """Return the folder of the service's database, objects, jobs and logs: $LUTHIER_HOME, else ~/.luthier."""
    path = os.environ.get("LUTHIER_HOME")
    return Path(path).expanduser().absolute() if path else Path.home() / ".luthier"
