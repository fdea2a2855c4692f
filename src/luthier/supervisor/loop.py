"""The supervisor's loop: beat, look at everything held, claim what there is room for, rest.

One thread; nothing in it waits for an engine, a disk of others or a network. Whatever goes wrong with one work leaves
the others alone, and a database that is away for a while stops nothing that runs.
"""

from __future__ import annotations

import logging
import os
import time
import uuid
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

from sqlalchemy.exc import SQLAlchemyError

from luthier.jobs.store import Resource
from luthier.supervisor.context import SupervisorContext
from luthier.supervisor.ending import of_fault
from luthier.supervisor.endpoints import EndpointWork
from luthier.supervisor.job import JobWork
from luthier.supervisor.recovery import beyond_devices, recover

JOBS = ("training-job", "automl-job")
ENDPOINTS = ("endpoint",)
LEASE = 60.0  # seconds that a claim outlives its supervisor's last beat
BEAT = 10.0
REST = 0.1  # seconds between two rounds while something is at work
IDLE_REST = 0.3
STOPS = 0.5  # seconds between two looks for queued jobs that are to be stopped
TROUBLE_REST = 3.0  # seconds after a fault nobody foresaw
_log = logging.getLogger(__name__)


class Work(Protocol):
    """One resource at work."""

    def step(self, resource: Resource | None) -> bool: ...
    def ask(self) -> None: ...
    def gone(self) -> bool: ...
    def kill(self) -> None: ...
    def beat(self) -> None: ...


def new_owner() -> str:
    """A name in the store for one life of a supervisor."""
    return f"{os.uname().nodename[:24]}-{os.getpid()}-{uuid.uuid4().hex[:12]}"


class Supervisor:
    """Runs what the store has queued, by the means of `context`."""

    def __init__(self, context: SupervisorContext) -> None:
        self.context = context
        self._works: dict[str, Work] = {}
        self._resting: dict[str, float] = {}
        self._beaten = self._stops_seen = float("-inf")

    def run(self, leave: Callable[[], bool]) -> None:
        """Work until `leave` says so; then let go of everything, each engine with its checkpoint written."""
        self._until_reached(self.recover, leave)
        while not leave():
            self.round()
            time.sleep(REST if self._works else IDLE_REST)
        self.let_go()

    def recover(self) -> None:
        """Put right what an earlier supervisor left; jobs whose engine is done go on at once, whatever the queue."""
        beat_file(self.context.settings.home).touch()
        recover(self.context, beat_file(self.context.settings.home).touch)
        waiting = list(beyond_devices(self.context.settings.jobs, self.context.store.waiting(JOBS)))
        while waiting and self._take(JOBS, only=waiting):
            pass

    def round(self) -> None:
        """Look at everything once."""
        try:
            self._beat()
            held = {one.id: one for one in self.context.store.held(self.context.owner, list(self._works))}
        except SQLAlchemyError as error:
            _log.error("the database does not answer: %s", error)
            time.sleep(1)
            return
        for name, work in list(self._works.items()):
            if self._resting.get(name, 0) > time.monotonic():
                continue
            try:
                if work.step(held.get(name)):
                    del self._works[name]
            except Exception:  # of one work: the others go on, and this one is tried again
                _log.exception("%s: tried again in %g s", name, TROUBLE_REST)
                self._resting[name] = time.monotonic() + TROUBLE_REST
        try:
            self._claim()
        except SQLAlchemyError as error:
            _log.error("nothing can be claimed: %s", error)

    def let_go(self) -> None:
        """End what runs, as gently as ServiceSettings.stop_seconds allow, and give everything back to the queue."""
        for work in self._works.values():
            work.ask()
        deadline = time.monotonic() + self.context.settings.stop_seconds + 1
        while time.monotonic() < deadline and [work for work in self._works.values() if not work.gone()]:
            time.sleep(0.05)
            self._quietly(self._beat)
        for name, work in self._works.items():
            work.kill()
            self._quietly(partial(self.context.store.release, name, self.context.owner))
        self._works.clear()

    def _beat(self) -> None:
        if time.monotonic() - self._beaten < BEAT:
            return
        self.context.store.beat(self.context.owner, time.time() + LEASE)
        for work in self._works.values():
            work.beat()
        beat_file(self.context.settings.home).touch()
        self._beaten = time.monotonic()

    def _claim(self) -> None:
        store = self.context.store
        if time.monotonic() - self._stops_seen > STOPS:
            self._stops_seen = time.monotonic()
            stopping = store.waiting(JOBS, to_stop=True)
            while stopping and self._take(JOBS, only=stopping):
                pass
        while self.context.devices.has_free and store.waiting(JOBS, limit=1) and self._take(JOBS):
            pass
        while store.waiting(ENDPOINTS, limit=1) and self._take(ENDPOINTS):
            pass

    def _take(self, kinds: tuple[str, ...], only: Sequence[str] | None = None) -> bool:
        resource = self.context.store.claim(
            self.context.owner, kinds, time.time() + LEASE, but=list(self._works), only=only
        )
        if resource is None:
            return False
        _log.info("%s %s: claimed", resource.kind, resource.name)
        try:
            self._works[resource.id] = self._begun(resource, in_turn=only is None)
        except Exception as error:  # its folder cannot be read
            _log.exception("%s %s cannot be begun", resource.kind, resource.name)
            facts = {"failure": of_fault(error), "ended": time.time()}
            self.context.store.update(resource.id, "Failed", secondary="Failed", facts=facts, owner=self.context.owner)
        return True

    def _begun(self, resource: Resource, in_turn: bool) -> Work:
        if resource.kind not in JOBS:
            return EndpointWork(resource, self.context)
        work = JobWork(resource, self.context)
        if work.needs_device and in_turn:
            self.context.devices.acquire(resource.id)
        return work

    def _until_reached(self, do: Callable[[], None], leave: Callable[[], bool]) -> None:
        while not leave():
            try:
                do()
                return
            except SQLAlchemyError as error:
                _log.error("the database does not answer: %s", error)
                time.sleep(1)

    def _quietly(self, do: Callable[[], None]) -> None:
        """On the way out: a database that is gone keeps nothing from ending; the next supervisor frees what is left."""
        try:
            do()
        except SQLAlchemyError as error:
            _log.error("the database does not answer: %s", error)


def beat_file(home: Path) -> Path:
    """Its time of change is the supervisor's last sign of life."""
    return home / "supervisor.beat"
