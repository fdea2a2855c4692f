"""What a model folder's config.json says, read as plain JSON: no weights, no torch.

For a model that the catalogue does not know it stands in for an entry.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from luthier.catalog.entry import KINDS, Entry, Licence
from luthier.errors import ModelNotFoundError

_CONTEXT_NAMES = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
_PAIRS = ("instruction", "autopilot")  # what an encoder-decoder learns from: a text to read and one to write


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a model folder, as stored. ModelNotFoundError when it is no JSON object."""
    try:
        stored = json.loads((folder / "config.json").read_text("utf-8"))
    except ValueError:
        stored = None
    if not isinstance(stored, dict):
        raise ModelNotFoundError(f"{folder / 'config.json'}: expected a JSON object; copy the whole model again")
    return stored


def context_length(folder: Path, entry: Entry | None = None) -> int:
    """Positions the model was built for: by its config.json, else by `entry`; 0 when neither names a limit."""
    config = read_config(folder)
    known = entry.context_length if entry else 0
    return next((int(config[name]) for name in _CONTEXT_NAMES if config.get(name)), known)


def entry_from_config(name: str, folder: Path) -> Entry:
    """An entry for a model outside the catalogue, made of its config.json alone; its licence and size are not known.

    An encoder-decoder takes FLAN-T5's ways: rows of prompt and completion, and no demarcation between them.
    """
    config = read_config(folder)
    pairs = bool(config.get("is_encoder_decoder"))
    return Entry(
        id=name,
        name=name,
        source=name,
        architecture=str((config.get("architectures") or ["unknown"])[0]),
        parameters=0,
        context_length=context_length(folder),
        licence=Licence("not known"),
        kinds=_PAIRS if pairs else KINDS,
        shape=config,
        default_template={"prompt": "{prompt}", "completion": "{completion}"} if pairs else None,
        default_hyperparameters={"add_input_output_demarcation_key": False} if pairs else {},
    )
