"""One endpoint: its variants kept running as long as it exists, and its status brought to what they are.

Creating ─► InService ⇄ SystemUpdating      a variant died and is started again
    │           ⇅
    │       Updating                        others are started beside those that answer, to take over
    └────────── Failed                      a variant cannot be had, or dies again and again
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from luthier.jobs.states import IllegalMoveError
from luthier.jobs.store import GoneError, Resource
from luthier.supervisor import ending
from luthier.supervisor.context import SupervisorContext
from luthier.supervisor.serving import Variant

LINGER = 2.0  # seconds that processes which were replaced stay, for who has just read their address
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Leaving:
    """A variant that another one has replaced."""

    variant: Variant
    since: float
    asked: bool = False


class EndpointWork:
    """The work on one endpoint that this supervisor holds."""

    def __init__(self, resource: Resource, context: SupervisorContext) -> None:
        self.resource = resource
        self.context = context
        self.folder = context.settings.endpoints / resource.id
        self._variants: list[Variant] | None = None
        self._next: list[Variant] = []
        self._update_number: int | None = None  # of the update that `_next` are for
        self._leaving: list[_Leaving] = []

    def step(self, resource: Resource | None) -> bool:
        """Go on without waiting; True when the endpoint needs no supervisor any more."""
        if resource is None or resource.status == "Deleting":
            return self._remove(resource)
        self.resource = resource
        try:
            return self._serve()
        except (GoneError, IllegalMoveError):
            return False  # deleted at this moment: the next round sees it
        except SQLAlchemyError:
            raise
        except Exception as error:
            _log.exception("endpoint %s", resource.name)
            return self._fail(ending.of_fault(error))

    def ask(self) -> None:
        for variant in self._all:
            variant.ask()

    def gone(self) -> bool:
        return not [variant for variant in self._all if not variant.gone()]

    def kill(self) -> None:
        for variant in self._all:
            variant.kill()

    @property
    def _all(self) -> list[Variant]:
        return [*(self._variants or ()), *self._next, *(one.variant for one in self._leaving)]

    def beat(self) -> None:
        """Nothing of an endpoint has to be kept."""

    def _serve(self) -> bool:
        facts = self.resource.facts
        if self._variants is None:
            self._variants = self._made(facts["variants"])
            self._tidy()
        for variant in self._variants:
            variant.step()
        self._part()
        failed = [variant.failure for variant in self._variants if variant.state == "failed"]
        if facts.get("pending"):
            return self._replace(facts["pending"], failed)
        if failed:
            return self._fail(failed[0])
        ready = all(variant.state == "ready" for variant in self._variants)
        if ready and self.resource.status != "InService":
            self._update("InService", _served(facts["variants"], self._variants))
        elif not ready and self.resource.status == "InService":
            self._update("SystemUpdating", {})
        return False

    def _replace(self, pending: Mapping[str, Any], failed: Sequence[str]) -> bool:
        """Bring up what an update asks for; `failed` says what those before it failed of, if they did."""
        if self._update_number != pending["number"]:
            self._drop(self._next)
            self._next, self._update_number = self._made(pending["variants"]), pending["number"]
        for variant in self._next:
            variant.step()
        broken = [variant.failure for variant in self._next if variant.state == "failed"]
        if broken:
            self._drop(self._next)
            self._next = []
            if failed:
                return self._fail(failed[0])
            why = f"The update to endpoint config {pending['EndpointConfigName']} failed: {broken[0]}"
            _log.warning("endpoint %s: %s", self.resource.name, why)
            self._update("InService", {"pending": None, "failure": why})
        elif all(variant.state == "ready" for variant in self._next):
            facts = _served(pending["variants"], self._next) | {"pending": None, "failure": None}
            request = {**self.resource.request, "EndpointConfigName": pending["EndpointConfigName"]}
            self._update("InService", facts, request)
            self._leaving += [_Leaving(variant, time.monotonic()) for variant in self._variants or ()]
            self._variants, self._next = self._next, []
        return False

    def _part(self) -> None:
        """Let those that were replaced answer what they were asked, and end."""
        for one in list(self._leaving):
            age = time.monotonic() - one.since - LINGER
            if age > 0 and not one.asked:
                one.variant.ask()
                one.asked = True
            if age > self.context.settings.stop_seconds or (one.asked and one.variant.gone()):
                self._drop([one.variant])
                self._leaving.remove(one)

    def _made(self, given: Sequence[Mapping[str, Any]]) -> list[Variant]:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return [Variant(self.folder, one, self.context) for one in given]

    def _drop(self, variants: Sequence[Variant]) -> None:
        for variant in variants:
            variant.kill()
            shutil.rmtree(variant.folder, ignore_errors=True)

    def _tidy(self) -> None:
        """Remove what a supervisor before us could not, of variants that were replaced or given up."""
        pending = self.resource.facts.get("pending") or {"variants": ()}
        known = [*(self._variants or ()), *self._made(pending["variants"])]
        kept = {variant.folder for variant in known}
        for path in self.folder.iterdir():
            if path.is_dir() and path not in kept:
                shutil.rmtree(path, ignore_errors=True)

    def _fail(self, failure: str) -> bool:
        self.kill()
        _log.warning("endpoint %s failed: %s", self.resource.name, failure)
        self._update("Failed", {"failure": failure, "pending": None})
        return True

    def _remove(self, resource: Resource | None) -> bool:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)
        if resource is not None:
            self.context.store.delete(resource.id)
        return True

    def _update(self, status: str, facts: dict[str, Any], request: Mapping[str, Any] | None = None) -> None:
        self.resource = self.context.store.update(
            self.resource.id, status, facts=facts, request=request, owner=self.context.owner
        )


def _served(given: Sequence[Mapping[str, Any]], variants: Sequence[Variant]) -> dict[str, Any]:
    """The facts of an endpoint that these variants serve."""
    addresses = {variant.name: variant.address for variant in variants}
    described = [{**one, "address": addresses[one["VariantName"]]} for one in given]
    return {"variants": described, "address": variants[0].address}
