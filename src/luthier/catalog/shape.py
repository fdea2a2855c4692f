"""What a model folder's config.json says, read as plain JSON: no weights, no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_CONTEXT_NAMES = ("max_position_embeddings", "n_positions", "max_seq_len")


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a model folder, as stored."""
    stored: dict[str, Any] = json.loads((folder / "config.json").read_text("utf-8"))
    return stored


def context_length(folder: Path) -> int:
    """Positions the model was built for; 0 when the architecture names no limit."""
    config = read_config(folder)
    return next((int(config[name]) for name in _CONTEXT_NAMES if config.get(name)), 0)
