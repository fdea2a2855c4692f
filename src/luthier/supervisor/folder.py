"""The folder of a service job: the engine's job folder, with the supervisor's own files beside it.

request.json          the request, for information
service.json          the job's state (JobState), with which its stages continue after a kill
logs/engine.log       the engine's output
logs/events.jsonl     its lines with their times
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from luthier.jobfolder import JobFolder, write_json
from luthier.launchers.launcher import RunHandle

# Names in version 0.3, whose jobs are continued.
_RENAMED = {"process": "handle", "deaths": "crashes", "ending": "stop_reason"}
_STOP_REASONS = {"asked": "requested", "runtime": "max_runtime"}
_SECONDARIES = {"MaxAutoMLJobRuntimeReached": "MaxRuntimeExceeded", "ModelDeploymentError": "Completed"}


@dataclass(slots=True, kw_only=True)
class JobState:
    """The state of a job.

    `stage` is the current one; all before it are done. `handle` names the engine's run, from its start until its
    results are collected. `finishing`: an engine was started, or told, to make an artifact of what a stopped job has.
    `stop_reason` says why the engine has to stop before its work is done: "requested",
    "max_runtime", "stalled" or "" (it need not). `crashes` counts its ends by a signal the supervisor did not send
    since `progress`, the furthest point it had reached by then. `seconds` is the time spent on the job. `artifact` is
    the model's address once it is uploaded. `status`, `secondary` and `failure` are the job's outcome, once decided.
    """

    stage: str = "prepare"
    handle: RunHandle | None = None
    stop_reason: str = ""
    finishing: bool = False
    crashes: int = 0
    progress: int = -1
    seconds: float = 0.0
    artifact: str = ""
    status: str = ""
    secondary: str = ""
    failure: str = ""
    format_version: int = 2


@dataclass(slots=True)
class ServiceFolder:
    """Paths and state of one service job."""

    root: Path
    state: JobState = field(init=False)

    def __post_init__(self) -> None:
        self.state = read_state(self.root)

    @property
    def job(self) -> JobFolder:
        return JobFolder(self.root)

    @property
    def log(self) -> Path:
        return self.root / "logs" / "engine.log"

    @property
    def events(self) -> Path:
        return self.root / "logs" / "events.jsonl"

    @property
    def downloads(self) -> Path:
        """The channels as they were downloaded; the job folder links to them."""
        return self.root / "input" / "s3"

    @property
    def is_finished(self) -> bool:
        """Whether the engine has done all its work; it writes the report last, and each file atomically."""
        return all(path.is_file() for path in (self.job.artifact, self.job.metrics, self.job.report))

    @property
    def progress(self) -> int:
        """A number that grows with the work that a resumed engine does not repeat."""
        steps = [int(path.name[5:]) for path in self.job.checkpoints.glob("step-*")]
        scored = len(list(self.job.scores.glob("base.*.jsonl")))
        return max(steps, default=0) * 10 + scored

    def create(self, request: Any) -> None:
        """Create the folder (0700) with its request."""
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        (self.root / "logs").mkdir(exist_ok=True)
        write_json(self.root / "request.json", request)

    def save(self) -> None:
        """Write the state to disk."""
        write_json(self.root / "service.json", asdict(self.state))


def read_state(root: Path) -> JobState:
    """The state stored in a folder, also by version 0.3; a new job's state if there is none."""
    path = root / "service.json"
    stored = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    state = JobState(**{_RENAMED.get(name, name): value for name, value in stored.items()} | {"format_version": 2})
    state.stop_reason = _STOP_REASONS.get(state.stop_reason, state.stop_reason)
    state.secondary = _SECONDARIES.get(state.secondary, state.secondary)
    if state.stage == "deploy":  # done by the store when the job is Completed
        state.stage, state.status, state.secondary = "finish", "Completed", "Completed"
    return state
