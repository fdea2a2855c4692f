"""How long the queue before a job is, in words."""

from __future__ import annotations

from luthier.api.service import Service
from luthier.jobs.store import Resource

COUNTED = 500  # jobs before one; to count more would make Describe slower the longer the queue is


def waiting(job: Resource, service: Service) -> str:
    """Which place in the queue a job has that no supervisor holds yet; empty for any other."""
    if not job.open or job.owner is not None or job.status != "InProgress" or job.facts.get("started"):
        return ""
    before = service.store.position(job, COUNTED)
    place = f"place {before + 1}" if before < COUNTED else f"{COUNTED} jobs or more before it"
    return f"Waiting for a device: {place} in the queue"
