"""What all of the supervisor's works share: the store, the objects, the devices, and the programs to run."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from luthier.jobs.settings import ServiceSettings
from luthier.jobs.store import Store
from luthier.launchers.process import CPU, Launch, environment
from luthier.supervisor.layout import ArtifactStore

ENGINE = (sys.executable, "-P", "-m", "luthier.training")
SERVING = (sys.executable, "-P", "-m", "luthier.serving")
# No core files: they would hold the user's rows and fill the disk.
LIMITS: Mapping[str, int] = {"RLIMIT_CORE": 0}


class Slots:
    """The devices of one job each, and who has which. A slot may be there several times ("cpu", "cpu")."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self._free = list(names)
        self._taken: dict[str, str] = {}

    @property
    def free(self) -> bool:
        return bool(self._free)

    def take(self, job: str) -> str | None:
        """The slot of this job, taken now unless it has one; None when all are taken."""
        if job not in self._taken:
            if not self._free:
                return None
            self._taken[job] = self._free.pop(0)
        return self._taken[job]

    def give(self, job: str) -> None:
        """Free the slot of this job, if it has one."""
        name = self._taken.pop(job, None)
        if name is not None:
            self._free.append(name)

    def sharing(self, name: str) -> int:
        """How many engines may run on the cores of this machine's CPU beside each other, with one on slot `name`."""
        return self.names.count(CPU) if name == CPU else 1


@dataclass(frozen=True, slots=True)
class Workshop:
    """`owner` names this supervisor in the store; `engine` and `serving` are the commands, a folder to be added.

    After so many `deaths` by a signal that was not ours, without progress between them, a job is given up.
    """

    settings: ServiceSettings
    store: Store
    objects: ArtifactStore
    owner: str
    slots: Slots
    engine: Sequence[str] = ENGINE
    serving: Sequence[str] = SERVING
    limits: Mapping[str, int] = field(default_factory=lambda: LIMITS)
    deaths: int = 3

    def launch(self, folder: Path, log: Path, device: str, resume: bool) -> Launch:
        """How the engine is started on a job folder."""
        command = (*self.engine, str(folder), *(("--resume",) if resume else ()))
        return Launch(command, folder, log, environment(device, self.slots.sharing(device)), self.limits)
