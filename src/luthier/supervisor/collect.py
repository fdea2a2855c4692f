"""What a finished job leaves: its model, report, metrics and ledger, uploaded to where the request wants them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from luthier.catalog.jumpstart import image_uri
from luthier.errors import LuthierError, ObjectStoreUnreachableError, UserError
from luthier.jobs import trial
from luthier.jobs.store import Resource
from luthier.supervisor import metrics, order
from luthier.supervisor.folder import ServiceFolder
from luthier.supervisor.layout import ArtifactStore

BESIDE = ("report.html", "metrics.json", "ledger.jsonl")


def upload(folder: ServiceFolder, resource: Resource, objects: ArtifactStore) -> None:
    """Upload everything; the same objects again when it is repeated, and the model last."""
    for path, uri in _pairs(folder, resource):
        try:
            objects.upload_file(path, uri)
        except ObjectStoreUnreachableError:
            raise  # none of the request's faults, and to be tried again
        except LuthierError as error:
            raise UserError(f"Artifact upload failed: {error}") from error


def artifact(resource: Resource) -> str:
    """Where the model lies once it is uploaded: an archive, or a prefix where none was wanted."""
    return order.output(resource) + ("model/" if _loose(resource) else "model.tar.gz")


def _loose(resource: Resource) -> bool:
    return bool(resource.request["OutputDataConfig"].get("CompressionType") == "NONE")


def _pairs(folder: ServiceFolder, resource: Resource) -> Iterator[tuple[Path, str]]:
    below = order.output(resource)
    for name in BESIDE:
        path = folder.root / name
        if path.is_file():
            yield path, below + name
    if not _loose(resource):
        yield folder.job.artifact, below + "model.tar.gz"
        return
    for path in sorted(folder.job.model.rglob("*")):
        if path.is_file():
            yield path, f"{below}model/{path.relative_to(folder.job.model).as_posix()}"


def sweep(folder: ServiceFolder) -> None:
    """Free the disk of what was uploaded or can be downloaded again; logs, metrics and report stay."""
    for path in (folder.job.checkpoints, folder.job.model, folder.root / "input" / "data", folder.downloads,
                 folder.root / "input" / "base"):  # fmt: skip
        shutil.rmtree(path, ignore_errors=True)
    folder.job.artifact.unlink(missing_ok=True)


def container(resource: Resource) -> dict[str, Any]:
    """What CreateModel needs to serve the job's model."""
    task = "text2text-generation" if order.reads_pairs(order.entry_of(resource)) else "text-generation"
    return {
        "Image": image_uri("inference", resource.region),
        "ModelDataUrl": artifact(resource),
        "Environment": {"HF_TASK": task},
    }


def candidate(folder: ServiceFolder, resource: Resource, curve: metrics.Curve, now: float) -> dict[str, Any]:
    """The AutoML job's one candidate, as BestCandidate and ListCandidatesForAutoMLJob show it."""
    step = trial.training_job(resource)
    return {
        "CandidateName": trial.candidate_name(resource),
        "ObjectiveStatus": "Succeeded",
        "CandidateSteps": [
            {
                "CandidateStepType": "AWS::SageMaker::TrainingJob",
                "CandidateStepArn": step.arn,
                "CandidateStepName": step.name,
            }
        ],
        "CandidateStatus": "Completed",
        "CreationTime": resource.created,
        "EndTime": now,
        "LastModifiedTime": now,
        "InferenceContainers": [container(resource)],
        "InferenceContainerDefinitions": {"GPU": [container(resource)]},
        "CandidateProperties": {"CandidateMetrics": metrics.candidate(curve, folder.job.metrics)},
    }
