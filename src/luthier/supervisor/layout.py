"""Laying a job folder out: the channels downloaded, the order written where the engine looks for it.

Done anew from the start each time, so a kill in the middle of it leaves nothing to repair.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from luthier.errors import UserError
from luthier.jobfolder import find_channels
from luthier.jobs.store import Resource
from luthier.launchers.launcher import CPU
from luthier.supervisor import archive, order
from luthier.supervisor.folder import ServiceFolder


class ArtifactStore(Protocol):
    """What the supervisor needs of the object store. UserError for what is not there or may not be."""

    def download_prefix(self, uri: str, folder: Path) -> Any:
        """Copy the object, or all objects below an address, into `folder`, under their names below it."""
        ...

    def upload_file(self, path: Path, uri: str) -> None:
        """Store a file as the object of this address; it is on disk when this returns."""
        ...


Fetch = Callable[[ArtifactStore, str, Path], None]


def lay_out(folder: ServiceFolder, resource: Resource, objects: ArtifactStore, device: str) -> None:
    """Download the channels and write the engine's order. UserError for rows or weights that are not to be had."""
    shutil.rmtree(folder.root / "input", ignore_errors=True)
    found = {
        name: _download(objects, f"channel {name!r}", uri, folder.downloads / name)
        for name, uri in order.channels(resource).items()
    }
    if len(found) == 1:
        found = find_channels(found["training"])  # it may hold training/ and validation/, as JumpStart's own data do
    weights = None
    base = str(resource.facts["base_model"])
    if base.startswith("s3://"):
        weights = _download(objects, "channel 'model'", base, folder.root / "input" / "base", archive.fetch)
    folder.job.create(order.job(resource, device, found, str(weights) if weights else None), found)


def put_on(folder: ServiceFolder, device: str) -> None:
    """Say in the order which device the job is to run on now; the run's mathematics do not depend on it."""
    folder.job.set_device("cpu" if device == CPU else "cuda")


def _rows(objects: ArtifactStore, uri: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    objects.download_prefix(uri, folder)


def _download(objects: ArtifactStore, what: str, uri: str, target: Path, fetch: Fetch = _rows) -> Path:
    try:
        fetch(objects, uri, target)
    except UserError as error:
        raise UserError(f"Data download failed for {what}: {error}") from error
    return target
