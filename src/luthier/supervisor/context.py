"""Settings, stores, launcher and devices, which all parts of the supervisor share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from luthier.jobs.resource import Resource
from luthier.jobs.settings import ServiceSettings
from luthier.jobs.store import Store
from luthier.launchers.launcher import CPU, Launcher, LaunchSpec
from luthier.supervisor.layout import ArtifactStore
from luthier.supervisor.restricted_store import RestrictedStore

# No core files, which would contain the user's rows and fill the disk.
LIMITS: Mapping[str, int] = {"RLIMIT_CORE": 0}


class DevicePool:
    """The devices of jobs, one job each, and their holders. A name may occur twice ("cpu", "cpu")."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self._free = list(names)
        self._held: dict[str, str] = {}

    @property
    def has_free(self) -> bool:
        return bool(self._free)

    def acquire(self, job: str) -> str | None:
        """Return the job's device, acquiring one if it holds none; None when none is free."""
        if job not in self._held:
            if not self._free:
                return None
            self._held[job] = self._free.pop(0)
        return self._held[job]

    def release(self, job: str) -> None:
        """Free the device of this job, if it holds one."""
        name = self._held.pop(job, None)
        if name is not None:
            self._free.append(name)

    def sharing(self, name: str) -> int:
        """How many engines may share the CPU's cores with one on device `name`, itself included."""
        return self.names.count(CPU) if name == CPU else 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisorContext:
    """`owner` names this supervisor in the store; `limits` bound each process it starts.

    A job fails after `max_crashes` ends by a signal that the supervisor did not send, without progress between them.
    """

    settings: ServiceSettings
    store: Store
    objects: ArtifactStore
    owner: str
    devices: DevicePool
    launcher: Launcher
    limits: Mapping[str, int] = field(default_factory=lambda: LIMITS)
    max_crashes: int = 3

    def objects_for(self, resource: Resource) -> ArtifactStore:
        """The object store, with the rights of the access key that created `resource`."""
        rights = self.store.rights_of(resource.creator)
        return RestrictedStore(self.objects, rights) if rights.words else self.objects

    def training_spec(self, folder: Path, device: str, resume: bool) -> LaunchSpec:
        """The launch spec of the engine for a job folder."""
        arguments = [str(folder), *(["--resume"] if resume else [])]
        return LaunchSpec(
            program="training", arguments=arguments, folder=folder, device=device,
            sharing=self.devices.sharing(device), limits=self.limits,
        )  # fmt: skip

    def serving_spec(self, folder: Path, model: str) -> LaunchSpec:
        """The launch spec of the process that serves `model`: a folder, or the name of a base model."""
        device = self.settings.serving_device
        arguments = [model, "--device", CPU if device == CPU else "cuda"]
        return LaunchSpec(program="serving", arguments=arguments, folder=folder, device=device, limits=self.limits)
