"""Reads config.json of a model folder as JSON, without weights or torch.

For a model outside the catalogue it makes an entry from that file, or from the header of a GGUF file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from luthier.catalog.entry import KINDS, Entry, Licence
from luthier.catalog.gguf_header import GgufHeader
from luthier.errors import ModelNotFoundError

_CONTEXT_NAMES = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
_PAIR_KINDS = ("instruction", "autopilot")  # data kinds of an encoder-decoder: an input text and an output text


def read_config(folder: Path) -> dict[str, Any]:
    """Return config.json of a model folder as stored; ModelNotFoundError when it is not a JSON object."""
    try:
        stored = json.loads((folder / "config.json").read_text("utf-8"))
    except ValueError:
        stored = None
    if not isinstance(stored, dict):
        raise ModelNotFoundError(f"{folder / 'config.json'}: expected a JSON object; copy the whole model again")
    return stored


def context_length(folder: Path, entry: Entry | None = None) -> int:
    """Return the maximum number of positions: from config.json, else from `entry`; 0 when neither states a limit."""
    config = read_config(folder)
    known = entry.context_length if entry else 0
    return next((int(config[name]) for name in _CONTEXT_NAMES if config.get(name)), known)


def entry_from_config(name: str, folder: Path) -> Entry:
    """Make an entry for a model outside the catalogue from its config.json; licence and size stay unknown.

    An encoder-decoder is treated as FLAN-T5: prompt/completion rows without demarcation.
    """
    config = read_config(folder)
    is_encoder_decoder = bool(config.get("is_encoder_decoder"))
    return Entry(
        id=name,
        name=name,
        source=name,
        architecture=str((config.get("architectures") or ["unknown"])[0]),
        parameters=0,
        context_length=context_length(folder),
        licence=Licence("not known"),
        kinds=_PAIR_KINDS if is_encoder_decoder else KINDS,
        shape=config,
        default_template={"prompt": "{prompt}", "completion": "{completion}"} if is_encoder_decoder else None,
        default_hyperparameters={"add_input_output_demarcation_key": False} if is_encoder_decoder else {},
    )


def entry_from_header(name: str, header: GgufHeader) -> Entry:
    """Make an entry for a GGUF file from its metadata; `shape` stays empty until the file is converted."""
    return Entry(
        id=name,
        name=name,
        source=name,
        architecture=header.architecture,
        parameters=header.parameters,
        context_length=int(header.key("context_length") or 0),
        licence=Licence(str(header.metadata.get("general.license") or "not known")),
        kinds=_PAIR_KINDS if header.architecture == "t5" else KINDS,
    )
