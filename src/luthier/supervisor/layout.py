"""Creates the job folder: downloads the channels and writes the spec for the engine.

It starts from scratch each time, so it can be repeated after a kill.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from luthier import storage
from luthier.errors import UserError
from luthier.jobfolder import find_channels
from luthier.jobspec import MANIFEST, JobSpec
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

    def check_bucket(self, uri: str) -> None:
        """UserError if the bucket of this address is missing, or cannot be written."""
        ...


Fetch = Callable[[ArtifactStore, str, Path], None]


def lay_out(folder: ServiceFolder, spec: JobSpec, objects: ArtifactStore, device: str) -> None:
    """Download rows and weights and create the job folder.

    UserError for rows or weights that cannot be downloaded, and for an output bucket that is missing.
    """
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
    try:
        objects.check_bucket(spec.output)
    except UserError as error:
        raise UserError(f"The artifact could not be uploaded to {error}") from error
    folder.job.create(replace(spec, device=engine_device(device)), channels)


def engine_device(device: str) -> str:
    """The engine's name for a device of the pool; the engine sees only its own GPUs."""
    return "cpu" if device == CPU else "cuda"


def _rows(objects: ArtifactStore, uri: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if not uri.startswith(MANIFEST):
        objects.download_prefix(uri, folder)
        return
    listed = _read_manifest(objects, uri.removeprefix(MANIFEST), folder.with_name(f"{folder.name}-manifest"))
    for address, name in listed:
        target = storage.inside(folder, name, address).parent
        target.mkdir(parents=True, exist_ok=True)
        objects.download_prefix(address, target)


def _read_manifest(objects: ArtifactStore, uri: str, folder: Path) -> list[tuple[str, str]]:
    """(address, name) of each object that a manifest lists: [{"prefix": "s3://..."}, "a.jsonl", "sub/b.jsonl"].

    UserError for a file that is not such a list.
    """
    folder.mkdir(parents=True, exist_ok=True)
    objects.download_prefix(uri, folder)
    files = [path for path in folder.rglob("*") if path.is_file()]
    try:
        listed = json.loads(files[0].read_text("utf-8-sig")) if len(files) == 1 else None
    except ValueError as error:
        raise UserError(f"{uri}: not JSON: {error}") from None
    finally:
        shutil.rmtree(folder)
    entries: list[Any] = listed if isinstance(listed, list) else []
    head, names = next(iter(entries), None), entries[1:]
    if not (names and isinstance(head, dict) and head.keys() == {"prefix"} and all(isinstance(n, str) for n in names)):
        raise UserError(f'{uri}: not a manifest; expected [{{"prefix": "s3://BUCKET/PREFIX/"}}, "KEY", "KEY", ...]')
    return [(f"{head['prefix']}{name}", name.lstrip("/")) for name in names]


def _download(objects: ArtifactStore, what: str, uri: str, target: Path, fetch: Fetch = _rows) -> Path:
    try:
        fetch(objects, uri, target)
    except UserError as error:
        raise UserError(f"Data download failed for {what}: {error}") from error
    return target
