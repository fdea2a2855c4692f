"""Exporting a finished run: the adapter as it was trained, or merged into its base as one plain model."""

from __future__ import annotations

import shutil
from pathlib import Path

from luthier.errors import RunFolderError, UserError
from luthier.jobfolder import write_json
from luthier.weights.artifact import PROVENANCE, TOKENIZER_FILES
from luthier.weights.lora import merge
from luthier.weights.model import Model


def export_adapter(artifact: Path, out: Path) -> None:
    """Copy an adapter artifact to `out`. UserError when the run trained all weights."""
    if not (artifact / "adapter_config.json").is_file():
        raise UserError(f"{artifact}: the run trained all weights, it has no adapter; use --merged")
    _check_empty(out)
    shutil.copytree(artifact, out, dirs_exist_ok=True)


def export_merged(model: Model, artifact: Path, base: Path, out: Path, provenance: dict[str, object]) -> None:
    """Write a whole model in transformers' layout that needs neither peft nor Luthier."""
    _check_empty(out)
    network = merge(model) if (artifact / "adapter_config.json").is_file() else model.plain
    network.config.use_cache = True
    network.save_pretrained(str(out))
    if (base / "generation_config.json").is_file():
        shutil.copyfile(base / "generation_config.json", out / "generation_config.json")
    for name in (*TOKENIZER_FILES, "template.json"):
        if (artifact / name).is_file():
            shutil.copyfile(artifact / name, out / name)
    write_json(out / PROVENANCE, {**provenance, "merged": True})


def _check_empty(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunFolderError(f"{out}: not empty; choose another --out")
