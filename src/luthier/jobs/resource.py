"""A resource as the store holds it: the request, its spec, its status and its progress."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from luthier.jobs.progress import AutoMLProgress, EndpointProgress, Progress, TrainingProgress, initial_progress
from luthier.jobs.states import ENDED, FIRST, SUPERVISED
from luthier.jobspec import JobSpec
from luthier.protocol.call import sagemaker_arn

Owner = tuple[str, ...]
"""Account and region; of a new resource also the id of the access key that creates it, if requests are signed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """One row of `resources`; times in seconds since 1970.

    `parent` is the id of the AutoML job that this resource was created for. From `open` on, the fields are the queue's:
    whether it needs a supervisor, when a stop was requested, who holds it until when, and when it was last claimed.
    `creator` is the id of an access key, whose rights the resource has; empty if requests need no signature.
    """

    id: str
    kind: str
    account: str
    region: str
    name: str
    request: Mapping[str, Any]
    status: str
    secondary: str
    created: float
    modified: float
    spec: JobSpec | None = None
    progress: Progress | None = None
    parent: str | None = None
    revision: int = 0
    open: bool = False
    stop_requested: float | None = None
    owner: str | None = None
    lease: float | None = None
    creator: str = ""
    claimed: float | None = None

    @property
    def arn(self) -> str:
        return sagemaker_arn(self.region, self.account, self.kind, self.name)

    @property
    def ended(self) -> bool:
        return self.status in ENDED

    @property
    def job(self) -> JobSpec:
        """The spec of a training job."""
        assert self.spec is not None
        return self.spec

    @property
    def training(self) -> TrainingProgress:
        assert isinstance(self.progress, TrainingProgress)
        return self.progress

    @property
    def automl(self) -> AutoMLProgress:
        assert isinstance(self.progress, AutoMLProgress)
        return self.progress

    @property
    def endpoint(self) -> EndpointProgress:
        assert isinstance(self.progress, EndpointProgress)
        return self.progress


def new_resource(
    kind: str, owner: Owner, name: str, request: Mapping[str, Any], *,
    secondary: str = "", spec: JobSpec | None = None, progress: Progress | None = None, parent: str | None = None,
) -> Resource:  # fmt: skip
    """A resource that is not stored yet, in its kind's first status."""
    now = time.time()
    return Resource(
        id=uuid.uuid4().hex,
        kind=kind,
        account=owner[0],
        region=owner[1],
        name=name,
        request=request,
        status=FIRST.get(kind, ""),
        secondary=secondary,
        created=now,
        modified=now,
        spec=spec,
        progress=progress if progress is not None else initial_progress(kind),
        parent=parent,
        open=kind in SUPERVISED,
        creator=owner[2] if len(owner) > 2 else "",
    )
