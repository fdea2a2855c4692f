"""The job folder: the contract between the programs that create a training job and the engine that runs it.

It is SageMaker's training container layout, so a job can be understood by looking into a folder:

    JOB/
      input/config/hyperparameters.json     {"epoch": "3", ...}: every value a string, as SageMaker sends them
      input/config/inputdataconfig.json     {"training": {...}, "validation": {...}}: the channels present
      input/config/job.json                 Luthier's own: format version, base model, kind, device, command
      input/data/<channel>/                 the rows; a folder, or a link to one
      checkpoints/  model/  output/         written by the engine; output/failure holds the reason of a failure
      metrics.json  metrics.jsonl  ledger.jsonl  split.json  report.html  model.tar.gz

This module knows names and JSON, nothing of training: both halves of Luthier read it.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from luthier.errors import RunFolderError, UserError
from luthier.jobspec import JobSpec

FORMAT_VERSION = 1
PROVENANCE = "luthier.json"  # of a model's folder: how it was made
LONGEST_FAILURE = 1024  # characters of output/failure and of SageMaker's FailureReason
CHANNELS = ("training", "validation", "test")
CHANNEL_ALIASES = {
    "train": "training",
    "training": "training",
    "validation": "validation",
    "val": "validation",
    "test": "test",
}
# Fields of JobSpec that job.json holds; the others have files of their own, or concern the service alone.
_STORED = ("model", "kind", "device", "command", "max_truncated", "score_rows", "ranks", "eula", "max_rows")


class JobFolder:
    """Paths inside one job folder, and its small JSON files."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root).absolute()

    def __repr__(self) -> str:
        return f"JobFolder({str(self.root)!r})"

    @property
    def config(self) -> Path:
        return self.root / "input" / "config"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def model(self) -> Path:
        return self.root / "model"

    @property
    def output(self) -> Path:
        return self.root / "output"

    @property
    def failure(self) -> Path:
        return self.output / "failure"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.json"

    @property
    def metrics_lines(self) -> Path:
        return self.root / "metrics.jsonl"

    @property
    def ledger(self) -> Path:
        return self.root / "ledger.jsonl"

    @property
    def split(self) -> Path:
        return self.root / "split.json"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    @property
    def artifact(self) -> Path:
        return self.root / "model.tar.gz"

    @property
    def finish_marker(self) -> Path:
        """Its presence lets a training that is stopped write its best or newest checkpoint as the artifact."""
        return self.root / "finish"

    @property
    def scores(self) -> Path:
        """Per-row scores of base and tuned model: scores/base.<split>.jsonl, scores/tuned.<split>.jsonl."""
        return self.root / "scores"

    @property
    def events(self) -> Path:
        """TensorBoard event files."""
        return self.root / "tensorboard"

    def channel(self, name: str) -> Path:
        return self.root / "input" / "data" / name

    def channels(self) -> dict[str, Path]:
        """The channels present, by name, in the order training, validation, test."""
        return {name: self.channel(name).resolve() for name in CHANNELS if self.channel(name).exists()}

    def create(self, spec: JobSpec, channels: Mapping[str, Path]) -> None:
        """Create the folder's input from `spec`; `channels` maps each channel to the local folder or file of its rows.

        On this machine, `spec.channels` are not read: the rows are at hand.
        """
        self.config.mkdir(parents=True, exist_ok=True)
        for name, source in channels.items():
            target = self.channel(name)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(source.resolve())
        write_json(self.config / "hyperparameters.json", dict(spec.hyperparameters))
        how = {"TrainingInputMode": "File", "S3DistributionType": "FullyReplicated"}
        write_json(self.config / "inputdataconfig.json", dict.fromkeys(channels, how))
        self._write_job(spec)

    def read_spec(self) -> JobSpec:
        """Read the files that `create` wrote; RunFolderError when the folder is no job or is of a newer format."""
        path = self.config / "job.json"
        if not path.exists():
            raise RunFolderError(f"{self.root}: not a Luthier run (no input/config/job.json)")
        stored = json.loads(path.read_text("utf-8"))
        version = stored.pop("format_version", 0)
        if version > FORMAT_VERSION:
            raise RunFolderError(
                f"{self.root}: written by a newer Luthier (format {version}, this one reads up to {FORMAT_VERSION}); "
                "upgrade Luthier to read it"
            )
        channels = {name: str(path) for name, path in self.channels().items()}
        return JobSpec(**stored, channels=channels, hyperparameters=self.read_hyperparameters())

    def set_device(self, device: str) -> None:
        """Change the device that the job runs on; the mathematics of the run do not depend on it."""
        spec = self.read_spec()
        if spec.device != device:
            self._write_job(replace(spec, device=device))

    def read_warnings(self) -> list[str]:
        """What the run warned of so far; empty before it began."""
        try:
            stored = json.loads((self.root / "run.json").read_text("utf-8"))
        except (FileNotFoundError, ValueError):  # ValueError: a full disk
            return []
        return list(stored.get("warnings", []))

    def _write_job(self, spec: JobSpec) -> None:
        stored = {name: getattr(spec, name) for name in _STORED}
        write_json(self.config / "job.json", stored | {"format_version": FORMAT_VERSION})

    def read_hyperparameters(self) -> dict[str, Any]:
        """The hyperparameters as stored: names as given, values normally strings."""
        stored = json.loads((self.config / "hyperparameters.json").read_text("utf-8"))
        if not isinstance(stored, dict):
            raise UserError(f"{self.config / 'hyperparameters.json'}: expected a JSON object of names and strings")
        return stored

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for one process; RunFolderError when another run has it."""
        self.root.mkdir(parents=True, exist_ok=True)
        with open(self.root / ".lock", "w") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise RunFolderError(f"{self.root}: another run is using this folder; choose another --out") from None
            yield


def shorten_failure(text: str) -> str:
    """`text` within LONGEST_FAILURE characters."""
    return text if len(text) <= LONGEST_FAILURE else f"{text[: LONGEST_FAILURE - 4]} ..."


def find_channels(data: Path, scoring: bool = False) -> dict[str, Path]:
    """Find the channels of a DATA argument.

    A folder with sub-folders named training|train (and validation|val, test) is a set of channels; any other
    folder, or a single file, is the training channel itself. For `scoring` a lone test/ or validation/ is enough: its
    rows are then the ones to score, and stand where training rows would.
    """
    if not data.exists():
        raise UserError(f"{data}: no such file or folder")
    found: dict[str, Path] = {}
    if data.is_dir():
        for name, channel in CHANNEL_ALIASES.items():
            if (data / name).is_dir():
                if channel in found:
                    raise UserError(f"{data}: holds both {found[channel].name}/ and {name}/; keep one of them")
                found[channel] = data / name
    if "training" in found:
        return found
    if found and scoring:
        return {"training": found.get("test") or found["validation"]}
    if found:
        present = ", ".join(f"{path.name}/" for path in found.values())
        raise UserError(f"{data}: has {present} but no training/ folder; put the training rows into {data}/training/")
    return {"training": data}


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically: a reader sees the old file or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with open(temporary, "w", encoding="utf-8") as handle:
        json.dump(content, handle, indent=1, ensure_ascii=False, allow_nan=False)
        handle.write("\n")
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(temporary, path)


def apply_umask(folder: Path) -> None:
    """Give every file in `folder` the mode of a new file: safetensors 0.8 lets only the owner read its files."""
    umask = os.umask(0)
    os.umask(umask)
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o666 & ~umask)
