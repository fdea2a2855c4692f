"""A LoRA adapter as the model to tune further: the names of its base model, and the hyperparameters that it fixes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luthier.catalog.entry import REPOSITORY
from luthier.catalog.hyperparameter import Value
from luthier.catalog.hyperparameters import Hyperparameters
from luthier.errors import RunFolderError, SettingError, UserError
from luthier.jobfolder import PROVENANCE, JobFolder

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MERGED = "merged"
# adapter_config.json's field of each hyperparameter.
_FIELDS = {"lora_r": "r", "lora_alpha": "lora_alpha", "use_rslora": "use_rslora", "use_dora": "use_dora"}


@dataclass(frozen=True, slots=True, kw_only=True)
class TunedAdapter:
    """An adapter in PEFT's layout.

    `base_names` are the folder, repository and name of its base model, in the order in which they are tried.
    `base_sha256` is the hash of the base's weights; None for an adapter that Luthier did not train. `quantization`
    are the hyperparameters with which the base's weights were stored.
    """

    folder: Path
    base_names: tuple[str, ...]
    base_sha256: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    quantization: Mapping[str, Value] = field(default_factory=dict)

    def apply_to(self, values: Hyperparameters) -> Hyperparameters:
        """The hyperparameters with those of the adapter in place of defaults.

        SettingError for one that was set to another value than the adapter's. An adapter that is merged first fixes
        nothing.
        """
        if values["train_from_scratch"]:
            raise SettingError(
                f"train_from_scratch=True: the adapter in {self.folder} has no random base; leave one out"
            )
        if values["continue_as"] == MERGED:
            return values
        fixed: dict[str, Value] = {name: self.config[key] for name, key in _FIELDS.items() if key in self.config}
        fixed["peft_type"] = "lora"
        lines = [
            f"{name}={values[name]}: the adapter in {self.folder} has {value}"
            for name, value in fixed.items()
            if name in values.explicit and values[name] != value
        ] + self._target_conflicts(values)
        if lines:
            fix = "leave it out, or set continue_as=merged to merge the adapter and train anew"
            raise SettingError("\n".join(f"{line}; {fix}" for line in lines))
        defaults = {"lora_dropout": float(self.config.get("lora_dropout") or 0.0), **self.quantization}
        if "int8_quantization" in values.explicit or "bits" in values.explicit:
            defaults = {"lora_dropout": defaults["lora_dropout"]}
        fixed |= {name: value for name, value in defaults.items() if name not in values.explicit}
        return Hyperparameters(dict(values) | fixed, values.explicit, values.reserved)

    def _target_conflicts(self, values: Hyperparameters) -> list[str]:
        setting = str(values["lora_target_modules"])
        targets = self.config.get("target_modules") or []
        own = {targets} if isinstance(targets, str) else {*targets, *(self.config.get("target_parameters") or [])}
        named = {name.strip() for name in setting.split(",")}
        if "lora_target_modules" not in values.explicit or setting == "default" or named == own:
            return []
        return [f"lora_target_modules={setting}: the adapter in {self.folder} has {', '.join(sorted(own))}"]


def find_model_folder(folder: Path) -> Path:
    """The folder of a run's model for a run folder, else the folder itself; RunFolderError for an unfinished run."""
    run = JobFolder(folder)
    if not run.config.is_dir():
        return folder
    if not (run.model / PROVENANCE).is_file():
        raise RunFolderError(
            f"{folder}: this run has no model yet; finish it with luthier tune --resume --out {folder}"
        )
    return run.model


def read_adapter(folder: Path) -> TunedAdapter | None:
    """The adapter in a folder; None for a folder without one.

    UserError for an adapter of another kind than LoRA, without safetensors, or whose base model is named by a path
    only: of an adapter from elsewhere, no path of this machine is followed.
    """
    path = folder / ADAPTER_CONFIG
    has_weights = (folder / ADAPTER_WEIGHTS).is_file()
    if not path.is_file() or (not has_weights and (folder / "config.json").is_file()):
        return None
    config = _read_object(path)
    if not has_weights:
        raise UserError(f"{folder}: no {ADAPTER_WEIGHTS}; save the adapter with safe_serialization=True")
    if config.get("peft_type") != "LORA":
        raise UserError(f"{path}: peft_type {config.get('peft_type')!r} is not supported; expected 'LORA'")
    stored = folder / PROVENANCE
    if stored.is_file():
        provenance = _read_object(stored)
        base = provenance.get("model", {})
        names = dict.fromkeys(name for key in ("folder", "repository", "name") if (name := base.get(key)))
        return TunedAdapter(
            folder=folder, base_names=tuple(names), base_sha256=base.get("weights_sha256"), config=config,
            quantization=_quantization(provenance.get("quantization") or {}),
        )  # fmt: skip
    name = str(config.get("base_model_name_or_path") or "")
    if not REPOSITORY.fullmatch(name):
        raise UserError(
            f"{path}: base_model_name_or_path {name!r} is no ORG/NAME of a repository; write its base model's there"
        )
    return TunedAdapter(folder=folder, base_names=(name,), config=config)


def _quantization(record: Mapping[str, Any]) -> dict[str, Value]:
    """The hyperparameters that store the base's weights as the adapter's training did."""
    bits = record.get("bits", 16)
    kept = {name: record[name] for name in ("quant_type", "double_quant") if name in record}
    return {"bits": bits, "int8_quantization": bits == 8, **kept}


def _read_object(path: Path) -> dict[str, Any]:
    try:
        stored = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}") from None
    if not isinstance(stored, dict):
        raise UserError(f"{path}: expected a JSON object")
    return stored
