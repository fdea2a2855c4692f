"""A job folder resolved: its spec, settings, base model and device, checked before anything expensive starts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from luthier.catalog.entry import Entry, check_kind, check_tunable, licence_record, parse_for
from luthier.catalog.hub import fetch
from luthier.catalog.hyperparameters import TABLE, Hyperparameters
from luthier.catalog.locate import Location, locate
from luthier.catalog.shape import context_length, read_config
from luthier.catalog.tuned_adapter import TunedAdapter
from luthier.data.kind import resolve_kind
from luthier.data.settings import DataSettings
from luthier.errors import RunFolderError, SettingError
from luthier.jobfolder import JobFolder
from luthier.jobspec import JobSpec
from luthier.training.config import TrainingSettings, ineffective_for, needs_bf16_message, read_settings
from luthier.training.process_group import ProcessGroup
from luthier.weights.convert import convert_to_safetensors
from luthier.weights.fingerprint import adapter_hash, check_weights
from luthier.weights.load import compute_dtype, find_device


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedJob:
    """A checked job. `base` is the folder of the base model's files."""

    spec: JobSpec
    hyperparameters: Hyperparameters
    settings: TrainingSettings
    location: Location
    base: Path
    channels: dict[str, Path]
    data: DataSettings
    device: torch.device
    dtype: torch.dtype

    @property
    def entry(self) -> Entry | None:
        return self.location.entry

    @property
    def chat_template(self) -> str | None:
        """The catalogue's chat template, for a model whose files have none."""
        return self.entry.chat_template if self.entry else None

    @property
    def adapter(self) -> TunedAdapter | None:
        """The adapter to tune further, or to merge first."""
        return self.location.adapter

    @property
    def merges_adapter(self) -> bool:
        """Whether the adapter is merged into its base before training."""
        return self.adapter is not None and self.settings.method.merge_first

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    @property
    def warnings(self) -> list[str]:
        """Settings that have no effect, or will be slow."""
        is_encoder_decoder = bool(read_config(self.base).get("is_encoder_decoder"))
        warnings = [
            *self.settings.ineffective, *ineffective_for(self.hyperparameters, self.data.kind, is_encoder_decoder)
        ]  # fmt: skip
        if self.dtype is torch.float16 and self.device.type == "cpu":
            warnings.append("float16 is slow on a CPU: bf16=True or mixed_precision=False is faster there")
        if self.adapter is None and "continue_as" in self.hyperparameters.explicit:
            warnings.append("continue_as has no effect: the model is not an adapter")
        return warnings

    def on_rank(self, group: ProcessGroup) -> ResolvedJob:
        """The same job on the device of this rank."""
        return replace(self, device=group.local_device(self.device))

    def fingerprint(self, data_fingerprint: str, weights_sha256: str) -> str:
        """Hash of everything that affects the run's arithmetic; a checkpoint is resumed only under the same one.

        Settings at their defaults are left out, so that a later version with more settings still resumes it.
        """
        chosen = {name: value for name, value in self.hyperparameters.items() if value != TABLE[name].default}
        identity = [data_fingerprint, weights_sha256, self.data.kind, chosen]
        if self.adapter is not None:
            identity.append(adapter_hash(self.adapter.folder))
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def resolve_job(folder: JobFolder, say: Callable[[str], None]) -> ResolvedJob:
    """Read and check a job folder; download the base model if necessary, reporting through `say`.

    Raises a UserError: unknown model, licence not accepted, bad hyperparameters, missing channel.
    """
    spec = folder.read_spec()
    location = locate(spec.model)
    check_tunable(location.entry)
    check_eula(location.entry, spec)
    channels = folder.channels()
    if "training" not in channels:
        raise RunFolderError(f"{folder.root}: no training channel at {folder.channel('training')}")
    hyperparameters, _ = _parse(spec, location, channels["training"])
    read_settings(hyperparameters)  # so that bad settings fail before the download
    device = find_device(spec.device)
    base = convert_to_safetensors(fetch(location, say), say)
    if location.adapter is not None and location.adapter.base_sha256 is not None:
        check_weights(base, location.adapter.base_sha256, location.name)
    location = location.with_folder(base)  # for a model outside the catalogue, the entry is derived from its files
    hyperparameters, kind = _parse(spec, location, channels["training"])
    settings = read_settings(hyperparameters)
    positions = context_length(base, location.entry)
    dtype = compute_dtype(settings.run.precision, device)
    if settings.optimizer.in_bf16 and dtype is not torch.bfloat16:
        raise SettingError(needs_bf16_message(str(dtype).removeprefix("torch.")))
    return ResolvedJob(
        spec=spec, hyperparameters=hyperparameters, settings=settings, location=location, base=base, channels=channels,
        data=DataSettings.from_hyperparameters(
            kind, hyperparameters, hyperparameters.explicit, location.entry, positions
        ),
        device=device, dtype=dtype,
    )  # fmt: skip


def _parse(spec: JobSpec, location: Location, training: Path) -> tuple[Hyperparameters, str]:
    """The hyperparameters with the model's defaults, and the kind of the rows, which its entry must support."""
    entry = location.entry
    hyperparameters = parse_for(entry, spec.hyperparameters)
    if location.adapter is not None:
        hyperparameters = location.adapter.apply_to(hyperparameters)
    kind = resolve_kind(spec.kind, hyperparameters, hyperparameters.explicit, training)
    check_kind(entry, kind)
    return hyperparameters, kind


def check_eula(entry: Entry | None, spec: JobSpec) -> None:
    """EulaError unless the licence of a gated model was accepted for this job."""
    licence_record(entry, bool(spec.eula), by="", fix="add --accept-eula")
