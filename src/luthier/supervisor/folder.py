"""The folder of a service job: the engine's job folder, with the supervisor's own files beside it.

request.json          the request, for whoever looks into the folder
service.json          how far the job is (Marks): what makes each stage repeatable after a kill
logs/engine.log       what the engine writes
logs/events.jsonl     the same, line by line, with the time of each
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from luthier.jobfolder import JobFolder, write_json
from luthier.launchers.process import Trace

STAGES = ("prepare", "download", "train", "upload", "deploy", "finish")


@dataclass(slots=True)
class Marks:
    """How far a job is.

    `stage` is the one at work, all before it being done. `process` is the engine's, while there may be one. `ending`
    says why the engine is to end, before its work is done ("" while it is not): asked, runtime, or stalled. `deaths`
    counts its ends by a signal that was not ours since `progress`, the furthest point it had reached by then. `seconds`
    is the time that the job has been worked on. `artifact` is where the model lies once it is uploaded. `status`,
    `secondary` and `failure` are what the job ends with, once that is settled.
    """

    stage: str = "prepare"
    process: dict[str, float] | None = None
    ending: str = ""
    deaths: int = 0
    progress: int = -1
    seconds: float = 0.0
    artifact: str = ""
    status: str = ""
    secondary: str = ""
    failure: str = ""
    format_version: int = 1

    @property
    def trace(self) -> Trace | None:
        return Trace(int(self.process["pid"]), self.process["created"]) if self.process else None


@dataclass(slots=True)
class ServiceFolder:
    """Paths and marks of one service job."""

    root: Path
    marks: Marks = field(init=False)

    def __post_init__(self) -> None:
        self.marks = read_marks(self.root)

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
    def finished(self) -> bool:
        """Whether the engine has done all its work; the report is the last that it writes, each file in one move."""
        return all(path.is_file() for path in (self.job.artifact, self.job.metrics, self.job.report))

    @property
    def progress(self) -> int:
        """A number that grows with what a resumed engine need not do again."""
        steps = [int(path.name[5:]) for path in self.job.checkpoints.glob("step-*")]
        scored = len(list(self.job.scores.glob("base.*.jsonl")))
        return max(steps, default=0) * 10 + scored

    def create(self, request: Any) -> None:
        """Make the folder, nobody else's to read, with its request."""
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        (self.root / "logs").mkdir(exist_ok=True)
        write_json(self.root / "request.json", request)

    def save(self) -> None:
        """Bring the marks to disk."""
        write_json(self.root / "service.json", asdict(self.marks))


def read_marks(root: Path) -> Marks:
    """The marks in a folder; those of a job not begun where there are none."""
    path = root / "service.json"
    return Marks(**json.loads(path.read_text("utf-8"))) if path.is_file() else Marks()
