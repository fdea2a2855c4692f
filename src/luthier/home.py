"""Where Luthier keeps things on this machine, by its environment variables."""

from __future__ import annotations

import os
from pathlib import Path


def cache_root() -> Path:
    """Tokenized data and converted weights, by content: $LUTHIER_CACHE, else ~/.cache/luthier."""
    chosen = os.environ.get("LUTHIER_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "luthier"


def home_root() -> Path:
    """The service's own: database, objects, jobs, logs: $LUTHIER_HOME, else ~/.luthier."""
    chosen = os.environ.get("LUTHIER_HOME")
    return Path(chosen).expanduser().absolute() if chosen else Path.home() / ".luthier"
