"""SecondaryStatusTransitions: the stations of a job, each with its beginning, its end and a line of text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

MESSAGES: Mapping[str, str] = {
    "Starting": "Preparing the job",
    "Downloading": "Downloading the input data",
    "Training": "Training is in progress",
    "Uploading": "Uploading the trained model",
    "PreTraining": "Downloading and checking the input data",
    "TrainingModels": "Training the candidate",
    "DeployingModel": "Deploying the model to an endpoint",
    "Stopping": "Stopping the job",
    "Completed": "The job is done",
    "Failed": "The job failed",
    "Stopped": "The job was stopped",
    "MaxRuntimeExceeded": "The job was stopped at its limit of run time",
    "MaxAutoMLJobRuntimeReached": "The job was stopped at its limit of run time",
    "ModelDeploymentError": "The job is done, and its model could not be deployed",
}
ENDS = frozenset({"Completed", "Failed", "Stopped", "MaxRuntimeExceeded", "MaxAutoMLJobRuntimeReached",
                  "ModelDeploymentError"})  # fmt: skip


def moved(stations: Sequence[Mapping[str, Any]], status: str, now: float, message: str = "") -> list[dict[str, Any]]:
    """`stations` with one more, the one before it ended; the same station again is no new one."""
    found = [dict(station) for station in stations]
    text = message or MESSAGES.get(status, status)
    if found and found[-1]["Status"] == status:
        return [*found[:-1], found[-1] | {"StatusMessage": text}]
    if found and found[-1].get("EndTime") is None:
        found[-1]["EndTime"] = now
    station: dict[str, Any] = {"Status": status, "StartTime": now, "StatusMessage": text}
    return [*found, station | ({"EndTime": now} if status in ENDS else {})]
