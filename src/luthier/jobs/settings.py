"""How the service was started: the settings that its API, its supervisor and its logs read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from luthier.defaults import DEFAULT_HOST, DEFAULT_PORT


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSettings:
    """How a server was started.

    `database` is an SQLAlchemy URL; empty: HOME/luthier.sqlite. `objects` is the endpoint of an S3 elsewhere; empty:
    the embedded store. `slots` are the devices of one job each: "cpu", or GPU ids joined by "+" ("0+1").
    `serving_device` is where endpoints compute, in the same words. `stall_seconds` without progress end a job;
    `stop_seconds` is what an engine has for its checkpoint when it is to end. `limits` are resource limits of engines
    and endpoints' processes, by the names of the `resource` module.
    """

    home: Path
    host: str = DEFAULT_HOST
    port: int = DEFAULT_PORT
    database: str = ""
    objects: str = ""
    slots: tuple[str, ...] = ("cpu",)
    stall_seconds: float = 3600.0
    stop_seconds: float = 120.0
    serving_device: str = "cpu"
    limits: Mapping[str, int] = field(default_factory=dict)

    @property
    def database_url(self) -> str:
        return self.database or f"sqlite:///{self.home / 'luthier.sqlite'}"

    @property
    def jobs(self) -> Path:
        """The job folders, by resource id."""
        return self.home / "jobs"

    @property
    def endpoints(self) -> Path:
        """The endpoints' model folders and sockets, by resource id."""
        return self.home / "endpoints"
