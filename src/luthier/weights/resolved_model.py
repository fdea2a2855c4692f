"""The model argument of `generate`, `evaluate` and `export`: a run, an artifact folder, or a base model by name.

This module finds folders and loads weights; the template in the provenance is interpreted by luthier.data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from luthier.catalog.entry import Entry
from luthier.catalog.hub import fetch
from luthier.catalog.locate import locate
from luthier.errors import ModelNotFoundError, RunFolderError
from luthier.jobfolder import PROVENANCE
from luthier.weights.artifact import CHAT_TEMPLATE, read_provenance
from luthier.weights.convert import convert_to_safetensors
from luthier.weights.fingerprint import check_weights
from luthier.weights.load import load_model
from luthier.weights.lora import load_adapter
from luthier.weights.model import Model
from luthier.weights.quantize import Quantization


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedModel:
    """A model for inference. `base` has the weights and tokenizer; `adapter` is None for full weights.

    `provenance` is the run's luthier.json, empty for a base model; `artifact` is its folder.
    """

    name: str
    base: Path
    adapter: Path | None = None
    entry: Entry | None = None
    artifact: Path | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def dtype(self) -> torch.dtype | None:
        """The compute type of the run; None for a base model."""
        return getattr(torch, self.provenance["dtype"]) if self.provenance else None

    @property
    def chat_template(self) -> str | None:
        """The chat template for a base without one: the run's, or the catalogue's."""
        stored = self.artifact / CHAT_TEMPLATE if self.artifact else None
        if stored and stored.is_file():
            return stored.read_text("utf-8")
        return self.entry.chat_template if self.entry else None

    @property
    def chat_date(self) -> str | None:
        """The day that the run's chat template wrote (ISO 8601), which its prompts keep; None if it wrote none."""
        return self.provenance.get("chat_date")

    @property
    def quantization(self) -> Quantization | None:
        """The quantization of the base while the adapter was trained."""
        return Quantization.from_record(self.provenance.get("quantization")) if self.adapter else None

    def load(self, device: torch.device, dtype: torch.dtype, *, full_precision: bool = False) -> Model:
        """Load frozen weights for inference: quantized as in training, or with the base in `full_precision`."""
        quantization = None if full_precision else self.quantization
        model = load_model(self.base, device, dtype, frozen=True, quantization=quantization)
        return load_adapter(model, self.adapter) if self.adapter else model


def resolve_model(name: str, notify: Callable[[str], None]) -> ResolvedModel:
    """Resolve a RUN_OR_MODEL argument. RunFolderError for an unfinished run, ModelNotFoundError for an unknown name."""
    path = Path(name).expanduser()
    for folder in (path / "model", path):
        if (folder / PROVENANCE).is_file():
            return _from_artifact(folder.resolve(), notify)
    if (path / "input" / "config" / "job.json").is_file():
        raise RunFolderError(f"{name}: this run has no model yet; finish it with luthier tune --resume --out {name}")
    location = locate(name)
    base = convert_to_safetensors(fetch(location, notify), notify)
    adapter = location.adapter.folder if location.adapter else None  # of another tool: Luthier's have a provenance
    return ResolvedModel(name=location.name, base=base, adapter=adapter, entry=location.with_folder(base).entry)


def _from_artifact(folder: Path, notify: Callable[[str], None]) -> ResolvedModel:
    provenance = read_provenance(folder)
    name = str(folder.parent if folder.name == "model" else folder)
    if not (folder / "adapter_config.json").is_file():
        return ResolvedModel(name=name, base=folder, artifact=folder, provenance=provenance)
    return ResolvedModel(
        name=name, base=_find_base(provenance["model"], notify), adapter=folder, artifact=folder, provenance=provenance
    )


def _find_base(model: dict[str, Any], notify: Callable[[str], None]) -> Path:
    """The base an adapter was trained on, by its recorded folder or else its name; the weights must be the same."""
    folder = Path(model["folder"])
    if not (folder / "config.json").is_file():
        try:
            folder = convert_to_safetensors(fetch(locate(model["repository"] or model["name"]), notify), notify)
        except ModelNotFoundError as error:
            problem = f"{folder}: the base model that the adapter was trained on is gone"
            raise ModelNotFoundError(f"{problem}: {error}") from None
    check_weights(folder, model["weights_sha256"], model["name"])
    return folder
