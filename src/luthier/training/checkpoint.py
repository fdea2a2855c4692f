"""Checkpoints: everything a run needs to resume bit for bit, in safetensors and JSON.

    checkpoints/step-000040/
      weights.safetensors     the trainable parameters
      optimizer.safetensors   AdamW's moments and counters
      state.json              step, best validation so far, counters, and the hashes of the two files above

A checkpoint is written under a temporary name and renamed, so it is complete or absent; the hashes are verified when it
is read, and instead of a damaged one the previous one is read. Tensors are written and read one at a time, all-gathered
from their shards: the format does not depend on the number of ranks, and rank 0 needs memory for one full tensor.
Random generators are not stored: they are seeded from (seed, step, rows).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from luthier.errors import CheckpointError
from luthier.jobfolder import write_json
from luthier.training.loss_scale import INITIAL_SCALE
from luthier.training.process_group import ProcessGroup
from luthier.training.tensor_file import StoredTensors, write_tensors

FILES = ("weights.safetensors", "optimizer.safetensors")


@dataclass(slots=True, kw_only=True)
class TrainingState:
    """The progress of a run; losses are in nats per label token.

    `stale_validations` counts the validations without improvement. `loss_scale` and `steady_steps` belong to float16,
    see loss_scale.py. `micro_batches` per step over all ranks: a run that resumes on another number of ranks shards the
    same ones (0: the settings' number for one rank). `rows_at_once`: the most rows that fit in memory, if not all do.
    """

    step: int = 0
    best_step: int | None = None
    best_loss: float | None = None
    stale_validations: int = 0
    tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    stopped_early: bool = False
    loss_scale: float = INITIAL_SCALE
    steady_steps: int = 0
    micro_batches: int = 0
    rows_at_once: int | None = None

    def to_json(self) -> dict[str, Any]:
        return {_STORED_NAMES.get(name, name): value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> TrainingState:
        """Read the state of this version or of an earlier one, which may lack fields."""
        fields = {name: field for field, name in _STORED_NAMES.items()}
        return cls(**{fields.get(name, name): value for name, value in stored.items()})


# Fields whose names in state.json are older than their names here.
_STORED_NAMES = {"stale_validations": "stale", "micro_batches": "window"}


class Checkpoints:
    """The checkpoints of one run; the newest `limit` and the best one are kept.

    All ranks make the same calls; rank 0 writes and verifies. The files do not depend on the number of ranks.
    """

    def __init__(self, folder: Path, limit: int, fingerprint: str, group: ProcessGroup | None = None) -> None:
        self.folder = folder
        self.limit = limit
        self.fingerprint = fingerprint
        self.group = group or ProcessGroup()

    def save(self, state: TrainingState, weights: Mapping[str, Tensor], optimizer: Mapping[str, Tensor]) -> Path:
        """Write a checkpoint of `state.step` and delete those beyond the limit; all ranks wait for it."""
        target = self.folder / f"step-{state.step:06d}"
        if self.group.is_main:
            self._write(target, state, weights, optimizer)
        else:
            for tensors in (weights, optimizer):
                write_tensors(None, tensors)
        self.group.all_gather(None)
        return target

    def _write(
        self, target: Path, state: TrainingState, weights: Mapping[str, Tensor], optimizer: Mapping[str, Tensor]
    ) -> None:
        temporary = self.folder / f".writing-{os.getpid()}"
        for incomplete in self.folder.glob(".writing-*"):  # left by a killed run: this one holds the folder's lock
            shutil.rmtree(incomplete)
        temporary.mkdir(parents=True)
        both = zip(FILES, (weights, optimizer), strict=True)
        hashes = {name: write_tensors(temporary / name, tensors) for name, tensors in both}
        stored = {"format_version": 1, "fingerprint": self.fingerprint, "state": state.to_json(), "sha256": hashes}
        write_json(temporary / "state.json", stored)
        if target.exists():
            shutil.rmtree(target)
        os.replace(temporary, target)
        self._delete_old(state)

    def steps(self) -> list[int]:
        """The steps that have a checkpoint folder, newest first."""
        return sorted((int(path.name[5:]) for path in self.folder.glob("step-*")), reverse=True)

    def latest(self, say: Callable[[str], None]) -> tuple[TrainingState, StoredTensors, StoredTensors] | None:
        """The newest undamaged checkpoint, or None; damaged ones are reported through `say`.

        CheckpointError when the checkpoint belongs to other data, settings or base weights.
        """
        step = self.group.broadcast(self._newest(say) if self.group.is_main else None)
        return None if step is None else self._open(step)

    def read(self, step: int) -> tuple[TrainingState, StoredTensors, StoredTensors]:
        """State, weights and optimizer tensors of one checkpoint, verified; the tensors are read lazily."""
        if self.group.is_main:
            self._verify(step)
        return self._open(step)

    def _newest(self, say: Callable[[str], None]) -> int | None:
        for step in self.steps():
            try:
                self._verify(step)
                self._open(step)
            except (OSError, ValueError, KeyError, SafetensorError) as error:
                say(f"checkpoint of step {step} is damaged ({error}); trying the one before")
            else:
                return step
        return None

    def _verify(self, step: int) -> None:
        folder, stored = self._stored(step)
        if stored["fingerprint"] != self.fingerprint:
            raise CheckpointError(
                f"{folder}: written with other data, settings or base weights; resume with the same ones, or start a "
                "new run"
            )
        for name in FILES:
            if _hash(folder / name) != stored["sha256"][name]:
                raise ValueError(f"{name} does not match its hash")

    def _open(self, step: int) -> tuple[TrainingState, StoredTensors, StoredTensors]:
        folder, stored = self._stored(step)
        weights, optimizer = (StoredTensors(folder / name) for name in FILES)
        return TrainingState.from_json(stored["state"]), weights, optimizer

    def _stored(self, step: int) -> tuple[Path, dict[str, Any]]:
        folder = self.folder / f"step-{step:06d}"
        stored: dict[str, Any] = json.loads((folder / "state.json").read_text("utf-8"))
        return folder, stored

    def _delete_old(self, state: TrainingState) -> None:
        kept = set(self.steps()[: self.limit]) | {state.best_step}
        for step in self.steps():
            if step not in kept:
                shutil.rmtree(self.folder / f"step-{step:06d}")


def _hash(path: Path) -> str:
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
