"""The kinds of resources, and the transitions between their statuses: one table per kind.

training job, AutoML job    InProgress ──► Completed | Failed          InProgress ──► Stopping ──► Stopped | Failed
endpoint                    Creating ──► InService ⇄ Updating | SystemUpdating         any ──► Failed | Deleting
"""

from __future__ import annotations

from collections.abc import Mapping

from luthier.errors import LuthierError

TRAINING_JOB, AUTOML_JOB, MODEL, ENDPOINT_CONFIG, ENDPOINT = (
    "training-job", "automl-job", "model", "endpoint-config", "endpoint",
)  # fmt: skip
SUPERVISED = frozenset({TRAINING_JOB, ENDPOINT})
"""Kinds that a supervisor works on."""

Moves = Mapping[str, frozenset[str]]

_JOB: Moves = {
    "InProgress": frozenset({"InProgress", "Completed", "Failed", "Stopping", "Stopped"}),
    "Stopping": frozenset({"Stopping", "Stopped", "Completed", "Failed"}),
    "Completed": frozenset({"Completed"}),
    "Failed": frozenset({"Failed"}),
    "Stopped": frozenset({"Stopped"}),
}
_ENDPOINT: Moves = {
    "Creating": frozenset({"Creating", "InService", "Failed", "Deleting"}),
    "InService": frozenset({"InService", "Updating", "SystemUpdating", "Failed", "Deleting"}),
    "Updating": frozenset({"Updating", "InService", "Failed", "Deleting"}),
    "SystemUpdating": frozenset({"SystemUpdating", "InService", "Failed", "Deleting"}),
    "Failed": frozenset({"Failed", "Deleting"}),
    "Deleting": frozenset({"Deleting"}),
}
_NO_LIFECYCLE: Moves = {"": frozenset({""})}

STATES: Mapping[str, Moves] = {
    TRAINING_JOB: _JOB,
    AUTOML_JOB: _JOB,
    ENDPOINT: _ENDPOINT,
    ENDPOINT_CONFIG: _NO_LIFECYCLE,
    MODEL: _NO_LIFECYCLE,
}
FIRST = {TRAINING_JOB: "InProgress", AUTOML_JOB: "InProgress", ENDPOINT: "Creating"}
ENDED = frozenset({"Completed", "Failed", "Stopped"})


class IllegalMoveError(LuthierError):
    """A status does not follow from the present one."""


def check_move(kind: str, name: str, before: str, after: str) -> None:
    """Raise IllegalMoveError where STATES does not allow the move."""
    if after not in STATES[kind].get(before, frozenset()):
        raise IllegalMoveError(f"{kind} {name}: {after or 'no status'} does not follow from {before or 'no status'}")
