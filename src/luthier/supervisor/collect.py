"""Uploads the results of a finished job: model, report, metrics and ledger."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from luthier.errors import LuthierError, ObjectStoreUnreachableError, UserError
from luthier.jobspec import JobSpec
from luthier.supervisor.folder import ServiceFolder
from luthier.supervisor.layout import ArtifactStore

REPORTS = ("report.html", "metrics.json", "ledger.jsonl")


def upload(folder: ServiceFolder, spec: JobSpec, objects: ArtifactStore) -> None:
    """Upload everything, the model last; repeating it writes the same objects again."""
    for path, uri in _uploads(folder, spec):
        try:
            objects.upload_file(path, uri)
        except ObjectStoreUnreachableError:
            raise  # retried: the request is not at fault
        except LuthierError as error:
            raise UserError(
                f"Artifact upload failed: {error}; the model is kept on the server: {folder.job.artifact}"
            ) from error


def _uploads(folder: ServiceFolder, spec: JobSpec) -> Iterator[tuple[Path, str]]:
    """Each file to upload, with its address."""
    for name in REPORTS:
        path = folder.root / name
        if path.is_file():
            yield path, spec.output + name
    if spec.compressed:
        yield folder.job.artifact, spec.artifact
        return
    for path in sorted(folder.job.model.rglob("*")):
        if path.is_file():
            yield path, f"{spec.artifact}{path.relative_to(folder.job.model).as_posix()}"


def sweep(folder: ServiceFolder) -> None:
    """Delete the files that were uploaded or can be downloaded again; logs, metrics and report stay."""
    for path in (folder.job.checkpoints, folder.job.model, folder.root / "input" / "data", folder.downloads,
                 folder.root / "input" / "base"):  # fmt: skip
        shutil.rmtree(path, ignore_errors=True)
    folder.job.artifact.unlink(missing_ok=True)
