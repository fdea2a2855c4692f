"""One endpoint: keeps its variants running while it exists, and its status up to date.

Creating ─► InService ⇄ SystemUpdating      a variant crashed and is restarted
    │           ⇅
    │       Updating                        new variants start and then replace the present ones
    └────────── Failed                      a variant cannot be fetched or loaded, or crashes repeatedly
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from luthier.jobs.progress import PendingUpdate, ServedVariant
from luthier.jobs.resource import Resource
from luthier.jobs.states import IllegalMoveError
from luthier.jobs.store import GoneError
from luthier.supervisor.context import SupervisorContext
from luthier.supervisor.failure import service_failure
from luthier.supervisor.serving import VariantProcess

LINGER = 2.0  # seconds that replaced processes keep running, for requests under way
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Replaced:
    """A variant that another one has replaced."""

    variant: VariantProcess
    since: float
    is_stopping: bool = False


class EndpointWork:
    """The work on one endpoint that this supervisor holds."""

    def __init__(self, resource: Resource, context: SupervisorContext) -> None:
        self.resource = resource
        self.context = context
        self.folder = context.settings.endpoints / resource.id
        self._variants: list[VariantProcess] | None = None
        self._next: list[VariantProcess] = []
        self._update_number: int | None = None  # of the update that `_next` belong to
        self._replaced: list[_Replaced] = []

    def step(self, resource: Resource | None) -> bool:
        """Continue without waiting; True when the endpoint needs no supervisor any more."""
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
            return self._fail(service_failure(error))

    def request_stop(self) -> None:
        for variant in self._all:
            variant.request_stop()

    def is_stopped(self) -> bool:
        return all(variant.is_stopped() for variant in self._all)

    def kill(self) -> None:
        for variant in self._all:
            variant.kill()

    @property
    def _all(self) -> list[VariantProcess]:
        return [*(self._variants or ()), *self._next, *(replaced.variant for replaced in self._replaced)]

    def heartbeat(self) -> None:
        """An endpoint has nothing to save."""

    def _serve(self) -> bool:
        progress = self.resource.endpoint
        if self._variants is None:
            self._variants = self._create_variants(progress.variants)
            self._remove_stale_folders()
        for variant in self._variants:
            variant.step()
        self._stop_replaced()
        failed = [variant.failure for variant in self._variants if variant.state == "failed"]
        if progress.pending is not None:
            return self._replace(progress.pending, failed)
        if failed:
            return self._fail(failed[0])
        ready = all(variant.state == "ready" for variant in self._variants)
        if ready and self.resource.status != "InService":
            self._update("InService", {"variants": _with_addresses(progress.variants, self._variants)})
        elif not ready and self.resource.status == "InService":
            self._update("SystemUpdating", {})
        return False

    def _replace(self, pending: PendingUpdate, failed: Sequence[str]) -> bool:
        """Start the variants of an update; `failed` are the failures of the present ones."""
        if self._update_number != pending.number:
            self._drop(self._next)
            self._next, self._update_number = self._create_variants(pending.variants), pending.number
        for variant in self._next:
            variant.step()
        broken = [variant.failure for variant in self._next if variant.state == "failed"]
        if broken:
            self._drop(self._next)
            self._next = []
            if failed:
                return self._fail(failed[0])
            why = f"The update to endpoint config {pending.config} failed: {broken[0]}"
            _log.warning("endpoint %s: %s", self.resource.name, why)
            self._update("InService", {"pending": None, "failure": why})
        elif all(variant.state == "ready" for variant in self._next):
            variants = _with_addresses(pending.variants, self._next)
            progress = {"variants": variants, "pending": None, "failure": ""}
            request = {**self.resource.request, "EndpointConfigName": pending.config}
            self._update("InService", progress, request)
            self._replaced += [_Replaced(variant, time.monotonic()) for variant in self._variants or ()]
            self._variants, self._next = self._next, []
        return False

    def _stop_replaced(self) -> None:
        """Let replaced variants finish their requests, and stop them."""
        for replaced in list(self._replaced):
            age = time.monotonic() - replaced.since - LINGER
            if age > 0 and not replaced.is_stopping:
                replaced.variant.request_stop()
                replaced.is_stopping = True
            if age > self.context.settings.stop_seconds or (replaced.is_stopping and replaced.variant.is_stopped()):
                self._drop([replaced.variant])
                self._replaced.remove(replaced)

    def _create_variants(self, variants: Sequence[ServedVariant]) -> list[VariantProcess]:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        objects = self.context.objects_for(self.resource)
        return [VariantProcess(self.folder, variant, self.context, objects) for variant in variants]

    def _drop(self, variants: Sequence[VariantProcess]) -> None:
        for variant in variants:
            variant.kill()
            shutil.rmtree(variant.folder, ignore_errors=True)

    def _remove_stale_folders(self) -> None:
        """Remove the folders of replaced or failed variants of an earlier supervisor."""
        pending = self.resource.endpoint.pending
        known = [*(self._variants or ()), *self._create_variants(pending.variants if pending else ())]
        present = {variant.folder for variant in known}
        for path in self.folder.iterdir():
            if path.is_dir() and path not in present:
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

    def _update(self, status: str, progress: Mapping[str, Any], request: Mapping[str, Any] | None = None) -> None:
        self.resource = self.context.store.update(
            self.resource.id, status, progress=progress, request=request, owner=self.context.owner
        )


def _with_addresses(
    variants: Sequence[ServedVariant], processes: Sequence[VariantProcess]
) -> tuple[ServedVariant, ...]:
    """The variants with the addresses at which their processes answer."""
    addresses = {process.name: process.address for process in processes}
    return tuple(replace(variant, address=addresses[variant.name]) for variant in variants)
