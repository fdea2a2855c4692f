"""Which status a resource may take after which: one table for each kind.

training job, AutoML job    InProgress ──► Completed | Failed          InProgress ──► Stopping ──► Stopped | Failed
endpoint                    Creating ──► InService ⇄ Updating | SystemUpdating         any ──► Failed | Deleting
"""

from __future__ import annotations

from collections.abc import Mapping

from luthier.errors import LuthierError

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
_PLAIN: Moves = {"": frozenset({""})}

STATES: Mapping[str, Moves] = {
    "training-job": _JOB,
    "automl-job": _JOB,
    "endpoint": _ENDPOINT,
    "endpoint-config": _PLAIN,
    "model": _PLAIN,
}
FIRST = {"training-job": "InProgress", "automl-job": "InProgress", "endpoint": "Creating"}
ENDED = frozenset({"Completed", "Failed", "Stopped"})


class IllegalMoveError(LuthierError):
    """A resource was to take a status that does not follow from its present one."""


def check_move(kind: str, name: str, before: str, after: str) -> None:
    """Raise IllegalMoveError where STATES does not allow the move."""
    if after not in STATES[kind].get(before, frozenset()):
        raise IllegalMoveError(f"{kind} {name}: {after or 'no status'} does not follow from {before or 'no status'}")
