"""The settings of the service, which its API, supervisor and logs share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from luthier.defaults import DEFAULT_HOST, DEFAULT_PORT


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSettings:
    """The options of `luthier serve`.

    `database` is an SQLAlchemy URL; empty: HOME/luthier.sqlite. `objects` is the URL of an external S3; empty: the
    embedded store. `slots` are the devices of one job each: "cpu", or GPU ids joined by "+" ("0+1").
    `serving_device` is the device of endpoints. A job fails after `stall_seconds` without progress; an engine that is
    stopped has `stop_seconds` to write its checkpoint. `limits` are resource limits of the processes of jobs and
    endpoints, by their names in the `resource` module.
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
