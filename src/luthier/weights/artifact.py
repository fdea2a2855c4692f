"""The artifact: a run's trained model, as a folder and as model.tar.gz.

adapter_model.safetensors, adapter_config.json       LoRA: loads with peft on the base model it names
model.safetensors, config.json, generation_config    full or merged: loads with transformers
tokenizer.json, tokenizer_config.json, ...           the base model's tokenizer, unchanged; if it has no chat
                                                     template, the catalogue's in chat_template.jinja
template.json                                        the template that rendered the rows, if any
luthier.json                                         provenance: base model, data hashes, settings, versions
"""

from __future__ import annotations

import gzip
import json
import shutil
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from luthier.errors import UserError
from luthier.jobfolder import FORMAT_VERSION, PROVENANCE, apply_umask, write_json
from luthier.weights.config_forms import complete_config
from luthier.weights.model import Model

CHAT_TEMPLATE = "chat_template.jinja"
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "tokenizer.model", "spiece.model", CHAT_TEMPLATE,
)  # fmt: skip


def save_artifact(
    model: Model,
    base: Path,
    folder: Path,
    template: Mapping[str, str] | None,
    provenance: Mapping[str, Any],
    chat_template: str | None = None,
) -> None:
    """Write or replace the artifact folder: adapter or full weights, the tokenizer of `base`, template, provenance.

    `chat_template` is added for a base without one.
    """
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    save_weights(model, base, folder)
    if template is not None:
        write_json(folder / "template.json", template)
    if chat_template is not None:
        (folder / CHAT_TEMPLATE).write_text(chat_template, "utf-8")
    write_json(folder / PROVENANCE, provenance)
    _name_repository(folder, provenance)
    apply_umask(folder)


def _name_repository(folder: Path, provenance: Mapping[str, Any]) -> None:
    """Let adapter_config.json name the base's repository, if it has one: a path holds on this machine only."""
    path, repository = folder / "adapter_config.json", provenance.get("model", {}).get("repository")
    if path.is_file() and repository:
        config = json.loads(path.read_text("utf-8"))
        write_json(path, config | {"base_model_name_or_path": repository})


def save_weights(model: Model, base: Path, folder: Path) -> None:
    """Write weights and tokenizer: an adapter in PEFT's layout, or a whole model in transformers'."""
    if isinstance(model.network, PeftModel):
        model.network.peft_config["default"].base_model_name_or_path = str(base)
        model.network.save_pretrained(str(folder), safe_serialization=True)
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
    else:
        save_hf_model(model.network, base, folder)
    for name in TOKENIZER_FILES:
        if (base / name).is_file():
            shutil.copyfile(base / name, folder / name)


def save_hf_model(network: PreTrainedModel, base: Path, folder: Path) -> None:
    """Write a whole model in transformers' layout, with the generation settings of `base`.

    config.json keeps the base's fields, see config_forms.py.
    """
    has_separate_head = _separate_head(network)
    network.config.use_cache = True
    network.save_pretrained(str(folder))
    network.config.use_cache = False
    written, stored = (
        json.loads(path.read_text("utf-8")) if path.is_file() else {}
        for path in (folder / "config.json", base / "config.json")
    )
    config = complete_config(written, stored)
    write_json(folder / "config.json", config | {"tie_word_embeddings": False} if has_separate_head else config)
    if (base / "generation_config.json").is_file():
        shutil.copyfile(base / "generation_config.json", folder / "generation_config.json")


def _separate_head(network: PreTrainedModel) -> bool:
    """Whether an encoder-decoder's output head is separate from its embedding (T5 1.1, FLAN-T5, mT5), after untying.

    transformers 5 marks every model of the T5 family as tied and goes by the stored weights. Earlier versions go by the
    config: for a tied model they use the embedding as the head and scale its input. So a head whose input is not scaled
    gets a matrix of its own if it shares the embedding's, as in a model initialized by transformers 5.
    """
    if not network.config.is_encoder_decoder:
        return False
    head, embedding = cast(Any, network.get_output_embeddings()), cast(Any, network.get_input_embeddings())
    if head.weight is embedding.weight and getattr(network.config, "scale_decoder_outputs", True) is False:
        head.weight = nn.Parameter(head.weight.detach().clone())
    return head.weight is not embedding.weight


def round_weights(model: Model) -> None:
    """Round trained weights to the type they are stored in, so that scores are those of the saved model."""
    if not isinstance(model.network, PeftModel) and model.dtype is not torch.float32:
        nn.Module.to(model.hf_model, model.dtype)
        model.forget_fused_stacks()


def write_archive(folder: Path, archive: Path) -> None:
    """Write `folder` as a reproducible .tar.gz, replaced atomically."""
    temporary = archive.with_name(f".{archive.name}.writing")
    with (
        open(temporary, "wb") as raw,
        gzip.GzipFile(fileobj=raw, mode="wb", mtime=0, filename="", compresslevel=1) as zipped,
        tarfile.open(fileobj=zipped, mode="w") as tar,
    ):
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                tar.add(file, arcname=file.relative_to(folder).as_posix(), filter=_reset_metadata)
    temporary.replace(archive)


def _reset_metadata(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mtime = 0
    member.mode = 0o644
    return member


def read_provenance(folder: Path) -> dict[str, Any]:
    """luthier.json of an artifact folder; UserError when it is missing, not JSON, or of a newer format."""
    path = folder / PROVENANCE
    if not path.is_file():
        raise UserError(f"{folder}: not a Luthier artifact (no {PROVENANCE})")
    try:
        stored: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}") from None
    if stored.get("format_version", 0) > FORMAT_VERSION:
        raise UserError(
            f"{folder}: written by a newer Luthier (format {stored['format_version']}, this one reads up to "
            f"{FORMAT_VERSION}); upgrade Luthier to read it"
        )
    return stored
