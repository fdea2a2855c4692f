"""The order: what a job folder asks for, read and checked before anything heavy starts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from luthier.catalog.entry import Entry
from luthier.catalog.hub import fetch
from luthier.catalog.hyperparameters import TABLE, Hyperparameters, parse
from luthier.catalog.locate import Location, locate
from luthier.catalog.shape import context_length
from luthier.data.kind import resolve_kind
from luthier.data.settings import DataSettings
from luthier.errors import EulaError, RunFolderError, UserError
from luthier.jobfolder import Job, JobFolder
from luthier.training.config import Settings, read_settings
from luthier.weights.load import compute_dtype, find_device


@dataclass(frozen=True, slots=True)
class Order:
    """A checked order. `base` is the folder of the base model's files."""

    job: Job
    hyperparameters: Hyperparameters
    settings: Settings
    location: Location
    base: Path
    channels: dict[str, Path]
    data: DataSettings
    device: torch.device
    dtype: torch.dtype

    @property
    def entry(self) -> Entry | None:
        return self.location.entry

    def fingerprint(self, data_fingerprint: str, weights_sha256: str) -> str:
        """Identity of the run's mathematics: a checkpoint is only read back under the same one.

        Settings at their defaults are left out, so that a later version with more settings still reads it.
        """
        chosen = {name: value for name, value in self.hyperparameters.items() if value != TABLE[name].default}
        identity = [data_fingerprint, weights_sha256, self.data.kind, chosen]
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def read_order(folder: JobFolder, say: Callable[[str], None]) -> Order:
    """Read and check a job folder, fetching the base model when it is not at hand.

    Raises the UserError that fits: unknown model, licence not accepted, bad hyperparameters, missing channel.
    """
    job = folder.read_job()
    location = locate(job.model)
    check_eula(location, job)
    channels = folder.channels()
    if "training" not in channels:
        raise RunFolderError(f"{folder.root}: no training channel at {folder.channel('training')}")
    defaults = location.entry.default_hyperparameters if location.entry else {}
    hyperparameters = parse(folder.read_hyperparameters(), defaults)
    settings = read_settings(hyperparameters)
    device = find_device(job.device)
    kind = resolve_kind(job.kind, hyperparameters, hyperparameters.given, channels["training"])
    if location.entry and kind not in location.entry.kinds:
        raise UserError(
            f"{location.name} cannot be tuned on {kind} data; it takes {', '.join(location.entry.kinds)}"
        )
    base = fetch(location, say)
    data = DataSettings.from_hyperparameters(
        kind, hyperparameters, hyperparameters.given, location.entry, context_length(base)
    )
    dtype = compute_dtype(settings.run.bf16, device)
    return Order(job, hyperparameters, settings, location, base, channels, data, device, dtype)


def check_eula(location: Location, job: Job) -> None:
    """EulaError unless a gated model's licence was accepted in this order."""
    entry = location.entry
    if entry and entry.eula_required and not job.eula:
        raise EulaError(
            f"{entry.name} is under the {entry.licence} ({entry.licence_url}); read it, then add --accept-eula"
        )
