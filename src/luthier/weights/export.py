"""Export a finished run: the adapter, or a whole model with the adapter merged into its base."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from luthier.errors import RunFolderError, UserError
from luthier.jobfolder import write_json
from luthier.weights.artifact import PROVENANCE, TOKENIZER_FILES, save_hf_model
from luthier.weights.lora import merge_adapter
from luthier.weights.model import Model


def export_adapter(artifact: Path, out: Path) -> None:
    """Copy an adapter artifact to `out`. UserError when the run trained all weights."""
    if not (artifact / "adapter_config.json").is_file():
        raise UserError(f"{artifact}: the run trained all weights, it has no adapter; use --merged")
    require_empty_folder(out)
    shutil.copytree(artifact, out, dirs_exist_ok=True)


def merge_model(model: Model) -> Model:
    """The model with any adapter merged into the base weights; `model` must not be used afterwards."""
    return Model(merge_adapter(model) if model.has_adapter else model.hf_model, model.dtype, model.device)


def export_merged(model: Model, artifact: Path, base: Path, out: Path, provenance: Mapping[str, Any]) -> None:
    """Write a merged `model` in transformers' layout, which needs neither peft nor Luthier."""
    require_empty_folder(out)
    save_hf_model(model.hf_model, base, out)
    for name in (*TOKENIZER_FILES, "template.json"):
        if (artifact / name).is_file():
            shutil.copyfile(artifact / name, out / name)
    write_json(out / PROVENANCE, {**provenance, "merged": True})


def require_empty_folder(out: Path) -> None:
    """RunFolderError unless `out` is an empty folder or missing."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunFolderError(f"{out}: not empty; choose another --out")
