"""Export a finished run: the adapter, or a whole model with the adapter merged into its base."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.errors import RunFolderError, UserError
from luthier.jobfolder import PROVENANCE, apply_umask, write_json
from luthier.weights.artifact import CHAT_TEMPLATE, TOKENIZER_FILES, save_hf_model
from luthier.weights.lora import merge_adapter
from luthier.weights.model import Model
from luthier.weights.plain_adapter import multiply_scale_into_weights


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedPrompt:
    """How other programs make a prompt of a message, and where they end an answer.

    `chat_template` is None if no chat template makes the prompts that the run was trained on; `stop_ids` are the tokens
    that end an answer, the tokenizer's EOS first.
    """

    chat_template: str | None
    stop_ids: tuple[int, ...] = ()


def export_adapter(artifact: Path, out: Path, prompt: ServedPrompt, *, plain: bool = False) -> None:
    """Copy an adapter artifact to `out`; `plain`: with its scale in its weights.

    UserError when the run trained all weights, or has no plain form.
    """
    if not (artifact / "adapter_config.json").is_file():
        raise UserError(f"{artifact}: the run trained all weights, it has no adapter; use --merged")
    require_empty_folder(out)
    shutil.copytree(artifact, out, dirs_exist_ok=True)
    try:
        if plain:
            multiply_scale_into_weights(out)
    except UserError:
        shutil.rmtree(out)
        raise
    _write_chat_template(out, prompt.chat_template)
    apply_umask(out)


def merge_model(model: Model) -> Model:
    """The model with any adapter merged into the base weights; `model` must not be used afterwards."""
    return Model(merge_adapter(model) if model.has_adapter else model.hf_model, model.dtype, model.device)


def export_merged(
    model: Model, artifact: Path, base: Path, out: Path, provenance: Mapping[str, Any], prompt: ServedPrompt
) -> None:
    """Write a merged `model` in transformers' layout, which needs neither peft nor Luthier."""
    require_empty_folder(out)
    save_hf_model(model.hf_model, base, out)
    for name in (*TOKENIZER_FILES, "template.json"):
        if (artifact / name).is_file():
            shutil.copyfile(artifact / name, out / name)
    _write_chat_template(out, prompt.chat_template)
    _write_stop_ids(out, prompt.stop_ids)
    write_json(out / PROVENANCE, {**provenance, "merged": True})
    apply_umask(out)


def _write_chat_template(folder: Path, chat_template: str | None) -> None:
    """Write the template where each program looks for it (transformers.js: tokenizer_config.json), or remove it."""
    config_file = folder / "tokenizer_config.json"
    config = json.loads(config_file.read_text("utf-8")) if config_file.is_file() else {}
    config.pop("chat_template", None)
    (folder / "chat_template.json").unlink(missing_ok=True)
    if chat_template is None:
        (folder / CHAT_TEMPLATE).unlink(missing_ok=True)
    else:
        (folder / CHAT_TEMPLATE).write_text(chat_template, "utf-8")
        config["chat_template"] = chat_template
    write_json(config_file, config)


def _write_stop_ids(folder: Path, stop_ids: tuple[int, ...]) -> None:
    """Let generation_config.json end answers where training ended them."""
    path = folder / "generation_config.json"
    settings = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    if stop_ids:
        settings["eos_token_id"] = stop_ids[0] if len(stop_ids) == 1 else list(stop_ids)
    write_json(path, settings)


def require_empty_folder(out: Path) -> None:
    """RunFolderError unless `out` is an empty folder or missing."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunFolderError(f"{out}: not empty; choose another --out")
