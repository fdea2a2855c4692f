"""Checkpoints: what a run needs to go on as if it had never stopped, in safetensors and JSON.

    checkpoints/step-000040/
      weights.safetensors     the trainable parameters
      optimizer.safetensors   AdamW's moments and counters
      state.json              step, best validation so far, counters, and the hashes of the two files above

A checkpoint is written under another name and moved into place, so it is whole or absent; the hashes are verified when
it is read, and a torn one is passed over for the one before. Tensors are written and read one at a time, put together
from their shards where ranks share a model: one format, whoever wrote it, and memory for one whole tensor on rank 0.
Randomness needs no storing: it is drawn from (seed, step, rows).
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
from luthier.training.loss_scale import START
from luthier.training.process_group import ProcessGroup
from luthier.training.tensor_file import StoredTensors, write_tensors

FILES = ("weights.safetensors", "optimizer.safetensors")


@dataclass(slots=True)
class TrainingState:
    """Where a run stands. `stale` counts validations since the best one; losses are nats per label token.

    `loss_scale` and `steady_steps` are float16's, see loss_scale.py. `window`: micro-batches of a step over all ranks;
    a run that goes on with more or fewer ranks deals out the same ones (0: a run of one rank, as its settings say).
    `rows_at_once`: the most rows of a micro-batch that fit in memory, where it was not all of them.
    """

    step: int = 0
    best_step: int | None = None
    best_loss: float | None = None
    stale: int = 0
    tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    stopped_early: bool = False
    loss_scale: float = START
    steady_steps: int = 0
    window: int = 0
    rows_at_once: int | None = None


class Checkpoints:
    """The checkpoints of one run; the newest `limit` are kept, and the best one besides.

    Where there are several ranks each of them makes the same calls, and rank 0 writes and verifies. What is written
    does not depend on how many they are.
    """

    def __init__(self, folder: Path, limit: int, fingerprint: str, ranks: ProcessGroup | None = None) -> None:
        self.folder = folder
        self.limit = limit
        self.fingerprint = fingerprint
        self.ranks = ranks or ProcessGroup()

    def save(self, state: TrainingState, weights: Mapping[str, Tensor], optimizer: Mapping[str, Tensor]) -> Path:
        """Write a checkpoint of `state.step` and drop those beyond the limit. It is there when a rank returns."""
        target = self.folder / f"step-{state.step:06d}"
        if self.ranks.leads:
            self._write(target, state, weights, optimizer)
        else:
            for tensors in (weights, optimizer):
                write_tensors(None, tensors)
        self.ranks.gather(None)
        return target

    def _write(
        self, target: Path, state: TrainingState, weights: Mapping[str, Tensor], optimizer: Mapping[str, Tensor]
    ) -> None:
        temporary = self.folder / f".writing-{os.getpid()}"
        for left in self.folder.glob(".writing-*"):  # by a run that was killed: this one holds the folder's lock
            shutil.rmtree(left)
        temporary.mkdir(parents=True)
        both = zip(FILES, (weights, optimizer), strict=True)
        hashes = {name: write_tensors(temporary / name, tensors) for name, tensors in both}
        stored = {"format_version": 1, "fingerprint": self.fingerprint, "state": asdict(state), "sha256": hashes}
        write_json(temporary / "state.json", stored)
        if target.exists():
            shutil.rmtree(target)
        os.replace(temporary, target)
        self._drop_old(state)

    def steps(self) -> list[int]:
        """Steps that have a checkpoint folder, newest first."""
        return sorted((int(path.name[5:]) for path in self.folder.glob("step-*")), reverse=True)

    def latest(self, say: Callable[[str], None]) -> tuple[TrainingState, StoredTensors, StoredTensors] | None:
        """The newest sound checkpoint, or None when there is none; torn ones are named through `say`.

        Raises CheckpointError when the checkpoint belongs to other data, settings or base weights.
        """
        step = self.ranks.first(self._newest(say) if self.ranks.leads else None)
        return None if step is None else self._open(step)

    def read(self, step: int) -> tuple[TrainingState, StoredTensors, StoredTensors]:
        """State, weights and optimizer tensors of one checkpoint, verified; the tensors are read as they are used."""
        if self.ranks.leads:
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
                f"{folder}: was written with other data, settings or base weights; resume with the same ones, or start "
                "a new run"
            )
        for name in FILES:
            if _hash(folder / name) != stored["sha256"][name]:
                raise ValueError(f"{name} does not match its hash")

    def _open(self, step: int) -> tuple[TrainingState, StoredTensors, StoredTensors]:
        folder, stored = self._stored(step)
        weights, optimizer = (StoredTensors(folder / name) for name in FILES)
        return TrainingState(**stored["state"]), weights, optimizer

    def _stored(self, step: int) -> tuple[Path, dict[str, Any]]:
        folder = self.folder / f"step-{step:06d}"
        stored: dict[str, Any] = json.loads((folder / "state.json").read_text("utf-8"))
        return folder, stored

    def _drop_old(self, state: TrainingState) -> None:
        kept = set(self.steps()[: self.limit]) | {state.best_step}
        for step in self.steps():
            if step not in kept:
                shutil.rmtree(self.folder / f"step-{step:06d}")


def _hash(path: Path) -> str:
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
