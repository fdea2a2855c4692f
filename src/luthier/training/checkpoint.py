"""Checkpoints: what a run needs to go on as if it had never stopped, in safetensors and JSON.

    checkpoints/step-000040/
      weights.safetensors     the trainable parameters
      optimizer.safetensors   AdamW's moments and counters
      state.json              step, best validation so far, counters, and the hashes of the two files above

A checkpoint is written under another name and moved into place, so it is whole or absent; the hashes are verified when
it is read, and a torn one is passed over for the one before. Randomness needs no storing: it is drawn from
(seed, step).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from luthier.errors import CheckpointError
from luthier.jobfolder import write_json

FILES = ("weights.safetensors", "optimizer.safetensors")


@dataclass(slots=True)
class TrainingState:
    """Where a run stands. `stale` counts validations since the best one; losses are nats per label token."""

    step: int = 0
    best_step: int | None = None
    best_loss: float | None = None
    stale: int = 0
    tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    stopped_early: bool = False


class Checkpoints:
    """The checkpoints of one run; the newest `limit` are kept, and the best one besides."""

    def __init__(self, folder: Path, limit: int, fingerprint: str) -> None:
        self.folder = folder
        self.limit = limit
        self.fingerprint = fingerprint

    def save(self, state: TrainingState, weights: Mapping[str, Tensor], optimizer: Mapping[str, Tensor]) -> Path:
        """Write a checkpoint of `state.step` and drop those beyond the limit."""
        target = self.folder / f"step-{state.step:06d}"
        temporary = self.folder / f".writing-{os.getpid()}"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        for name, tensors in zip(FILES, (weights, optimizer), strict=True):
            save_file({key: value.detach().contiguous().cpu() for key, value in tensors.items()}, temporary / name)
        hashes = {name: _hash_and_sync(temporary / name) for name in FILES}
        stored = {"format_version": 1, "fingerprint": self.fingerprint, "state": asdict(state), "sha256": hashes}
        write_json(temporary / "state.json", stored)
        if target.exists():
            shutil.rmtree(target)
        os.replace(temporary, target)
        self._drop_old(state)
        return target

    def steps(self) -> list[int]:
        """Steps that have a checkpoint folder, newest first."""
        return sorted((int(path.name[5:]) for path in self.folder.glob("step-*")), reverse=True)

    def latest(self, say: Callable[[str], None]) -> tuple[TrainingState, dict[str, Tensor], dict[str, Tensor]] | None:
        """The newest sound checkpoint, or None when there is none; torn ones are named through `say`.

        Raises CheckpointError when the checkpoint belongs to other data, settings or base weights.
        """
        for step in self.steps():
            try:
                return self.read(step)
            except (OSError, ValueError, KeyError, SafetensorError) as error:
                say(f"checkpoint of step {step} is damaged ({error}); trying the one before")
        return None

    def read(self, step: int) -> tuple[TrainingState, dict[str, Tensor], dict[str, Tensor]]:
        """State, weights and optimizer tensors of one checkpoint, verified."""
        folder = self.folder / f"step-{step:06d}"
        stored = json.loads((folder / "state.json").read_text("utf-8"))
        if stored["fingerprint"] != self.fingerprint:
            raise CheckpointError(
                f"{folder}: was written with other data, settings or base weights; resume with the same ones, or start "
                "a new run"
            )
        for name in FILES:
            if _hash(folder / name) != stored["sha256"][name]:
                raise ValueError(f"{name} does not match its hash")
        weights, optimizer = (load_file(folder / name) for name in FILES)
        return TrainingState(**stored["state"]), weights, optimizer

    def _drop_old(self, state: TrainingState) -> None:
        kept = set(self.steps()[: self.limit]) | {state.best_step}
        for step in self.steps():
            if step not in kept:
                shutil.rmtree(self.folder / f"step-{step:06d}")


def _hash(path: Path) -> str:
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _hash_and_sync(path: Path) -> str:
    with open(path, "rb") as handle:
        os.fsync(handle.fileno())
    return _hash(path)
