"""Creates the job folder: downloads the channels and writes the spec for the engine.

It starts from scratch each time, so it can be repeated after a kill.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from luthier.errors import UserError
from luthier.jobfolder import find_channels
from luthier.jobspec import JobSpec
from luthier.launchers.launcher import CPU
from luthier.supervisor import archive
from luthier.supervisor.folder import ServiceFolder


class ArtifactStore(Protocol):
    """What the supervisor needs of the object store. UserError for missing or invalid objects."""

    def download_prefix(self, uri: str, folder: Path) -> Any:
        """Copy the object, or all objects below an address, into `folder`, under their names below it."""
        ...

    def upload_file(self, path: Path, uri: str) -> None:
        """Store a file as the object of this address; it is on disk when this returns."""
        ...


Fetch = Callable[[ArtifactStore, str, Path], None]


def lay_out(folder: ServiceFolder, spec: JobSpec, objects: ArtifactStore, device: str) -> None:
    """Download rows and weights and create the job folder. UserError for rows or weights that cannot be downloaded."""
    shutil.rmtree(folder.root / "input", ignore_errors=True)
    channels = {
        name: _download(objects, f"channel {name!r}", uri, folder.downloads / name)
        for name, uri in spec.channels.items()
    }
    if len(channels) == 1:  # it may hold training/ and validation/, as JumpStart's own data do
        channels = find_channels(channels["training"])
    if spec.model.startswith("s3://"):
        base = folder.root / "input" / "base"
        spec = replace(spec, model=str(_download(objects, "channel 'model'", spec.model, base, archive.fetch)))
    folder.job.create(replace(spec, device=engine_device(device)), channels)


def engine_device(device: str) -> str:
    """The engine's name for a device of the pool; the engine sees only its own GPUs."""
    return "cpu" if device == CPU else "cuda"


def _rows(objects: ArtifactStore, uri: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    objects.download_prefix(uri, folder)


def _download(objects: ArtifactStore, what: str, uri: str, target: Path, fetch: Fetch = _rows) -> Path:
    try:
        fetch(objects, uri, target)
    except UserError as error:
        raise UserError(f"Data download failed for {what}: {error}") from error
    return target
