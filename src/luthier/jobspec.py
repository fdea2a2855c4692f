"""JobSpec: a request to train, resolved once; what runs it never looks at the request again.

CreateTrainingJob, CreateAutoMLJobV2 and `luthier tune` each make one. The service stores it beside the request, and a
job folder holds it as files (jobfolder.py). Knows neither rows nor weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from luthier.errors import RunFolderError

VERSION = 1


MANIFEST = "manifest+"
"""Begins the address of a channel whose object lists the objects of its rows (SageMaker's ManifestFile)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSpec:
    """One training job.

    `model` is an entry of the catalogue, ORG/NAME of the Hub, a folder, or the s3:// prefix of weights. `kind` is auto,
    instruction, autopilot, chat or domain. `channels` maps training, validation and test to the addresses of their
    rows; `hyperparameters` are the engine's, every value a string. `device` is auto, cpu, cuda, cuda:N or mps; `ranks`
    are the processes that train together (0: one for each visible GPU, one without). `score_rows` bounds the
    held-out rows that are scored by generation (0: none, -1: all). More than `max_rows` rows, or a share of truncated
    rows above `max_truncated`, fail the job (None: the kind's own rule). `max_seconds` bounds the run time;
    `max_seconds_member` is the member of the request that sets it. `output` is the address below which the results
    are uploaded, ending in a slash; the model is one archive there if `compressed`, else a prefix of files.
    `checkpoints` is the address to which checkpoints are copied, and from which they are taken (empty: none). `eula`
    records who accepted the licence of a gated model, and when. `command` is what the user called.
    """

    model: str
    kind: str = "auto"
    channels: Mapping[str, str] = field(default_factory=dict)
    hyperparameters: Mapping[str, str] = field(default_factory=dict)
    device: str = "auto"
    ranks: int = 0
    score_rows: int = 200
    max_rows: int | None = None
    max_truncated: float | None = None
    max_seconds: float | None = None
    max_seconds_member: str = ""
    output: str = ""
    checkpoints: str = ""
    compressed: bool = True
    eula: Mapping[str, str] | None = None
    command: Sequence[str] = ()
    version: int = VERSION

    @property
    def artifact(self) -> str:
        """The address of the model once it is uploaded."""
        return self.output + ("model.tar.gz" if self.compressed else "model/")

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"command": list(self.command)}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> JobSpec:
        """RunFolderError for a spec that was written by a newer Luthier."""
        version = stored.get("version", 0)
        if version != VERSION:
            raise RunFolderError(f"job spec of version {version!r}: expected {VERSION}; upgrade Luthier to read it")
        return cls(**{**stored, "command": tuple(stored["command"])})
