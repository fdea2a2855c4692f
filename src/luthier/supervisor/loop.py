"""The supervisor's loop: heartbeat, one step of each job and endpoint, claim more while devices are free, sleep.

Its one thread never waits for an engine, an object store or a network. A failure of one job does not affect the
others, and running processes continue while the database is unreachable.
"""

from __future__ import annotations

import logging
import os
import time
import uuid
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy.exc import SQLAlchemyError

from luthier.jobs.resource import Resource
from luthier.jobs.states import ENDPOINT, TRAINING_JOB
from luthier.supervisor.context import SupervisorContext
from luthier.supervisor.endpoints import EndpointWork
from luthier.supervisor.failure import service_failure
from luthier.supervisor.job import JobWork
from luthier.supervisor.recovery import jobs_without_device, recover

JOBS = (TRAINING_JOB,)
ENDPOINTS = (ENDPOINT,)
LEASE_SECONDS = 60.0  # of a claim after its supervisor's last heartbeat
HEARTBEAT_SECONDS = 10.0
BUSY_INTERVAL = 0.1  # seconds between two rounds while something runs
IDLE_INTERVAL = 0.3
STOP_INTERVAL = 0.5  # seconds between two queries for queued jobs with a stop request
RETRY_SECONDS = 3.0  # after an unexpected error
_log = logging.getLogger(__name__)


class Work(Protocol):
    """The work on one resource."""

    def step(self, resource: Resource | None) -> bool: ...
    def request_stop(self) -> None: ...
    def is_stopped(self) -> bool: ...
    def kill(self) -> None: ...
    def heartbeat(self) -> None: ...


def new_owner() -> str:
    """A unique name in the store for this process."""
    return f"{os.uname().nodename[:24]}-{os.getpid()}-{uuid.uuid4().hex[:12]}"


class Supervisor:
    """Runs the jobs and endpoints of the store's queue."""

    def __init__(self, context: SupervisorContext) -> None:
        self.context = context
        self._works: dict[str, Work] = {}
        self._retry_at: dict[str, float] = {}
        self._heartbeat_at = self._stops_checked_at = float("-inf")

    def run(self, should_exit: Callable[[], bool]) -> None:
        """Work until `should_exit`; then stop everything, each engine after it has written its checkpoint."""
        self._retry_while_unreachable(self.recover, should_exit)
        while not should_exit():
            self.round()
            time.sleep(BUSY_INTERVAL if self._works else IDLE_INTERVAL)
        self.shut_down()

    def recover(self) -> None:
        """Clean up after an earlier supervisor; claim jobs whose engine is done ahead of the queue."""
        heartbeat_file(self.context.settings.home).touch()
        recover(self.context, heartbeat_file(self.context.settings.home).touch)
        waiting = list(jobs_without_device(self.context.settings.jobs, self.context.store.waiting(JOBS)))
        while waiting and self._claim_next(JOBS, only=waiting):
            pass

    def round(self) -> None:
        """One step of everything held, then claim more."""
        try:
            self._heartbeat()
            held = {row.id: row for row in self.context.store.held(self.context.owner, list(self._works))}
        except SQLAlchemyError as error:
            _log.error("the database is unreachable: %s", error)
            time.sleep(1)
            return
        for name, work in list(self._works.items()):
            if self._retry_at.get(name, 0) > time.monotonic():
                continue
            try:
                if work.step(held.get(name)):
                    del self._works[name]
            except Exception:  # the others go on, and this one is retried
                _log.exception("%s: retrying in %g s", name, RETRY_SECONDS)
                self._retry_at[name] = time.monotonic() + RETRY_SECONDS
        try:
            self._claim()
        except SQLAlchemyError as error:
            _log.error("cannot claim from the queue: %s", error)

    def shut_down(self) -> None:
        """Stop what runs, within ServiceSettings.stop_seconds, and release everything to the queue."""
        for work in self._works.values():
            work.request_stop()
        deadline = time.monotonic() + self.context.settings.stop_seconds + 1
        while time.monotonic() < deadline and [work for work in self._works.values() if not work.is_stopped()]:
            time.sleep(0.05)
            self._try(self._heartbeat)
        for name, work in self._works.items():
            work.kill()
            self._try(partial(self.context.store.release, name, self.context.owner))
        self._works.clear()

    def _heartbeat(self) -> None:
        if time.monotonic() - self._heartbeat_at < HEARTBEAT_SECONDS:
            return
        self.context.store.beat(self.context.owner, time.time() + LEASE_SECONDS)
        for work in self._works.values():
            work.heartbeat()
        heartbeat_file(self.context.settings.home).touch()
        self._heartbeat_at = time.monotonic()

    def _claim(self) -> None:
        store = self.context.store
        if time.monotonic() - self._stops_checked_at > STOP_INTERVAL:
            self._stops_checked_at = time.monotonic()
            stopping = store.waiting(JOBS, to_stop=True)
            while stopping and self._claim_next(JOBS, only=stopping):
                pass
        while self.context.devices.has_free and store.waiting(JOBS, limit=1) and self._claim_next(JOBS):
            pass
        while store.waiting(ENDPOINTS, limit=1) and self._claim_next(ENDPOINTS):
            pass

    def _claim_next(self, kinds: tuple[str, ...], only: Sequence[str] | None = None) -> bool:
        resource = self.context.store.claim(
            self.context.owner, kinds, time.time() + LEASE_SECONDS, exclude=list(self._works), only=only
        )
        if resource is None:
            return False
        _log.info("%s %s: claimed", resource.kind, resource.name)
        try:
            self._works[resource.id] = self._create_work(resource, is_queued=only is None)
        except Exception as error:  # its folder cannot be read
            _log.exception("cannot begin %s %s", resource.kind, resource.name)
            progress: dict[str, Any] = {"failure": service_failure(error)}
            if resource.kind == TRAINING_JOB:
                progress["ended"] = time.time()
            self.context.store.update(
                resource.id, "Failed", secondary="Failed", progress=progress, owner=self.context.owner
            )
        return True

    def _create_work(self, resource: Resource, is_queued: bool) -> Work:
        if resource.kind not in JOBS:
            return EndpointWork(resource, self.context)
        work = JobWork(resource, self.context)
        if work.needs_device and is_queued:
            self.context.devices.acquire(resource.id)
        return work

    def _retry_while_unreachable(self, action: Callable[[], None], should_exit: Callable[[], bool]) -> None:
        while not should_exit():
            try:
                action()
                return
            except SQLAlchemyError as error:
                _log.error("the database is unreachable: %s", error)
                time.sleep(1)

    def _try(self, action: Callable[[], None]) -> None:
        """Run `action` at shutdown, ignoring an unreachable database: the next supervisor releases the rest."""
        try:
            action()
        except SQLAlchemyError as error:
            _log.error("the database is unreachable: %s", error)


def heartbeat_file(home: Path) -> Path:
    """Its modification time is that of the supervisor's last heartbeat."""
    return home / "supervisor.beat"
