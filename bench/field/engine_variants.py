"""A model as an engine reads it that ignores one thing of it: copies with another config.json, or without a scale.

An engine whose tokens equal such a copy's, and not the model's, ignores that thing: measured, not looked up.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import AutoConfig

OLD_THETA = 10000.0  # what readers take where config.json names no rope_theta


def of_model(folder: Path, scratch: Path) -> Iterator[tuple[str, Path]]:
    """Yield what is ignored and a copy of the model without it, for all that its config has."""
    config: Any = AutoConfig.from_pretrained(folder)
    stored = config.to_dict()
    for name, changes in _changes(stored):
        yield name, _copy(folder, scratch / str(len(list(scratch.iterdir()))), {"config.json": stored | changes})


def of_adapter(folder: Path, scratch: Path) -> Iterator[tuple[str, Path]]:
    """Yield what is ignored and a copy of the adapter without it."""
    stored = json.loads((folder / "adapter_config.json").read_text("utf-8"))
    if stored.get("use_rslora"):
        yield "use_rslora", _copy(folder, scratch / "rslora", {"adapter_config.json": stored | {"use_rslora": False}})
    unscaled = stored | {"use_rslora": False, "lora_alpha": stored["r"]}
    yield "lora_alpha / r", _copy(folder, scratch / "scale", {"adapter_config.json": unscaled})


def _changes(stored: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """What is ignored, and the fields of config.json (in transformers 5's form) that say so."""
    rope = stored.get("rope_parameters") or {}
    layers = {name: each for name, each in rope.items() if isinstance(each, dict)}
    if layers:
        yield "rope_local_base_freq", _rope(dict.fromkeys(layers, layers["full_attention"]))
        yield "rope_theta", _rope({name: each | {"rope_theta": OLD_THETA} for name, each in layers.items()})
    elif rope:
        plain = {"rope_type": "default", "rope_theta": rope["rope_theta"]}
        kept = {name: rope[name] for name in ("partial_rotary_factor",) if name in rope}
        if rope.get("rope_type", "default") != "default":
            yield "rope_scaling", _rope(plain | kept)
        if rope["rope_theta"] != OLD_THETA:
            yield "rope_theta", _rope(rope | {"rope_theta": OLD_THETA})
            if rope.get("rope_type", "default") != "default":
                yield "rope_theta and rope_scaling", _rope(plain | kept | {"rope_theta": OLD_THETA})
        if rope.get("partial_rotary_factor", 1.0) != 1.0:
            yield "the rotary fraction", _rope(rope | {"partial_rotary_factor": 1.0}) | {"partial_rotary_factor": 1.0}
    if stored.get("sliding_window") and "sliding_attention" in (stored.get("layer_types") or ["sliding_attention"]):
        yield "sliding_window", {"sliding_window": stored["max_position_embeddings"]}


def _rope(parameters: dict[str, Any]) -> dict[str, Any]:
    return {"rope_parameters": parameters}


def _copy(folder: Path, out: Path, files: dict[str, Any]) -> Path:
    """The folder's files by symbolic links, with some JSON files replaced."""
    out.mkdir()
    for file in folder.iterdir():
        if file.name not in files and file.is_file():
            (out / file.name).symlink_to(file.resolve())
    for name, content in files.items():
        (out / name).write_text(json.dumps(content), "utf-8")
    return out
