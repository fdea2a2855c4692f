"""The order: what a job folder asks for, read and checked before anything heavy starts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from luthier.catalog.entry import Entry, check_kind, check_tunable, parse_for
from luthier.catalog.hub import fetch
from luthier.catalog.hyperparameters import TABLE, Hyperparameters
from luthier.catalog.locate import Location, locate
from luthier.catalog.shape import context_length, read_config
from luthier.data.kind import resolve_kind
from luthier.data.settings import DataSettings
from luthier.errors import EulaError, RunFolderError, SettingError
from luthier.jobfolder import JobFolder
from luthier.jobspec import JobSpec
from luthier.training.config import TrainingSettings, idle_on, read_settings, without_bf16
from luthier.weights.convert import as_safetensors
from luthier.weights.load import compute_dtype, find_device


@dataclass(frozen=True, slots=True)
class ResolvedJob:
    """A checked order. `base` is the folder of the base model's files."""

    job: JobSpec
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
        """The catalogue's template of conversations, for a model whose files bring none."""
        return self.entry.chat_template if self.entry else None

    @property
    def warnings(self) -> list[str]:
        """What of the order changes nothing, and what will be slow."""
        pairs = bool(read_config(self.base).get("is_encoder_decoder"))
        said = [*self.settings.idle, *idle_on(self.hyperparameters, self.data.kind, pairs)]
        if self.dtype is torch.float16 and self.device.type == "cpu":
            said.append("float16 is slow on a CPU: bf16=True or mixed_precision=False is faster there")
        return said

    def fingerprint(self, data_fingerprint: str, weights_sha256: str) -> str:
        """Identity of the run's mathematics: a checkpoint is only read back under the same one.

        TrainingSettings at their defaults are left out, so that a later version with more settings still reads it.
        """
        chosen = {name: value for name, value in self.hyperparameters.items() if value != TABLE[name].default}
        identity = [data_fingerprint, weights_sha256, self.data.kind, chosen]
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def resolve_job(folder: JobFolder, say: Callable[[str], None]) -> ResolvedJob:
    """Read and check a job folder, fetching the base model when it is not at hand.

    Raises the UserError that fits: unknown model, licence not accepted, bad hyperparameters, missing channel.
    """
    job = folder.read_spec()
    location = locate(job.model)
    check_tunable(location.entry)
    check_eula(location, job)
    channels = folder.channels()
    if "training" not in channels:
        raise RunFolderError(f"{folder.root}: no training channel at {folder.channel('training')}")
    asked = job.hyperparameters
    hyperparameters, kind = _read(asked, location.entry, job.kind, channels["training"])
    read_settings(hyperparameters)  # what can be refused is refused before anything is fetched
    device = find_device(job.device)
    base = as_safetensors(fetch(location, say), say)
    location = location.with_folder(base)  # the entry of a model outside the catalogue is made of its files
    hyperparameters, kind = _read(asked, location.entry, job.kind, channels["training"])
    settings = read_settings(hyperparameters)
    positions = context_length(base, location.entry)
    data = DataSettings.from_hyperparameters(kind, hyperparameters, hyperparameters.explicit, location.entry, positions)
    dtype = compute_dtype(settings.run.precision, device)
    if settings.optimizer.in_bf16 and dtype is not torch.bfloat16:
        raise SettingError(without_bf16(str(dtype).removeprefix("torch.")))
    return ResolvedJob(job, hyperparameters, settings, location, base, channels, data, device, dtype)


def _read(asked: Mapping[str, Any], entry: Entry | None, kind: str, training: Path) -> tuple[Hyperparameters, str]:
    """The hyperparameters over the entry's, and the kind of the rows, which must be one that the entry takes."""
    hyperparameters = parse_for(entry, asked)
    found = resolve_kind(kind, hyperparameters, hyperparameters.explicit, training)
    check_kind(entry, found)
    return hyperparameters, found


def check_eula(location: Location, job: JobSpec) -> None:
    """EulaError unless a gated model's licence was accepted in this order."""
    entry = location.entry
    if entry and entry.licence.eula and not job.eula:
        raise EulaError(
            f"{entry.name} is under the {entry.licence.name} ({entry.licence.url}); read it, then add --accept-eula"
        )
