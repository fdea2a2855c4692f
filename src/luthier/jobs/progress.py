"""The progress of a resource: one frozen dataclass per kind, stored as JSON beside its spec."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from luthier.jobs.states import AUTOML_JOB, ENDPOINT, MODEL, TRAINING_JOB

MESSAGES: Mapping[str, str] = {
    "Starting": "Preparing the job",
    "Downloading": "Downloading the input data",
    "Training": "Training is in progress",
    "Uploading": "Uploading the trained model",
    "Stopping": "Stopping the job",
    "Completed": "The job is done",
    "Failed": "The job failed",
    "Stopped": "The job was stopped",
    "MaxRuntimeExceeded": "The job was stopped at its limit of run time",
}
_FINAL = frozenset({"Completed", "Failed", "Stopped", "MaxRuntimeExceeded"})


@dataclass(frozen=True, slots=True)
class Transition:
    """One secondary status of a job; times in seconds since 1970."""

    status: str
    started: float
    message: str
    ended: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingProgress:
    """`step` is SageMaker's ProgressInfo; `metrics` are its FinalMetricDataList and `candidate_metrics` Autopilot's.

    `artifact` is the address of the model, empty until it is uploaded.
    """

    started: float | None = None
    ended: float | None = None
    transitions: tuple[Transition, ...] = ()
    failure: str = ""
    artifact: str = ""
    step: Mapping[str, int] = field(default_factory=dict)
    metrics: tuple[Mapping[str, Any], ...] = ()
    candidate_metrics: tuple[Mapping[str, Any], ...] = ()

    def with_transition(self, status: str, now: float, message: str = "") -> TrainingProgress:
        """End the present secondary status and begin `status`; the same status again only changes its message."""
        text = message or MESSAGES.get(status, status)
        *earlier, last = self.transitions or (None,)
        if last is not None and last.status == status:
            return replace(self, transitions=(*earlier, replace(last, message=text)))
        if last is not None:
            earlier.append(replace(last, ended=now) if last.ended is None else last)
        new = Transition(status, now, text, now if status in _FINAL else None)
        return replace(self, transitions=(*earlier, new))


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoMLProgress:
    """`candidate` is BestCandidate. `endpoint` is the endpoint to deploy to (empty: none); `deployed` once it is."""

    ended: float | None = None
    failure: str = ""
    candidate: Mapping[str, Any] | None = None
    endpoint: str = ""
    deployed: bool = False
    deploy_failure: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedVariant:
    """A production variant with a copy of its model's data, so that config and model can be deleted.

    `artifact` is the address of the model, `folder` its folder in the endpoint's folder (empty: the variant's name),
    `address` the socket of its process, empty until it is ready.
    """

    name: str
    model: str = ""
    image: str = ""
    artifact: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    weight: float = 1.0
    instance_count: int = 1
    folder: str = ""
    address: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingUpdate:
    """The current update of an endpoint."""

    number: int
    config: str
    started: float
    variants: tuple[ServedVariant, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointProgress:
    """`failure` is the reason why the endpoint or its last update failed; `updates` counts all updates."""

    variants: tuple[ServedVariant, ...] = ()
    failure: str = ""
    updates: int = 0
    pending: PendingUpdate | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelProgress:
    """`eula` records who accepted the licence of a gated base model that is served as it is."""

    eula: Mapping[str, str] | None = None


Progress = TrainingProgress | AutoMLProgress | EndpointProgress | ModelProgress
_TYPES: Mapping[str, type[Progress]] = {
    TRAINING_JOB: TrainingProgress,
    AUTOML_JOB: AutoMLProgress,
    ENDPOINT: EndpointProgress,
    MODEL: ModelProgress,
}


def initial_progress(kind: str) -> Progress | None:
    """The progress of a new resource; None for an endpoint config, which has none."""
    return _TYPES[kind]() if kind in _TYPES else None


def progress_to_json(progress: Progress | None) -> dict[str, Any] | None:
    return asdict(progress) if progress is not None else None


def progress_from_json(kind: str, stored: Mapping[str, Any] | None) -> Progress | None:
    if stored is None:
        return None
    fields: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in stored.items()
    }
    if kind == TRAINING_JOB:
        fields["transitions"] = tuple(Transition(**one) for one in fields["transitions"])
    if kind == ENDPOINT:
        pending = fields["pending"]
        fields["variants"] = _variants(fields["variants"])
        fields["pending"] = pending and PendingUpdate(**{**pending, "variants": _variants(pending["variants"])})
    return _TYPES[kind](**fields)


def _variants(stored: Sequence[Mapping[str, Any]]) -> tuple[ServedVariant, ...]:
    return tuple(ServedVariant(**variant) for variant in stored)
