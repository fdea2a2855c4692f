"""One endpoint: its variants kept running as long as it exists, and its status brought to what they are.

    Creating ─► InService ⇄ SystemUpdating      a variant died and is started again
        └────────── Failed                      a variant cannot be had, or dies again and again
"""

from __future__ import annotations

import logging
import shutil
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from luthier.service.states import IllegalMoveError
from luthier.service.store import GoneError, Resource
from luthier.service.supervisor import ending
from luthier.service.supervisor.serving import Variant
from luthier.service.supervisor.workshop import Workshop

_log = logging.getLogger(__name__)


class EndpointWork:
    """The work on one endpoint that this supervisor holds."""

    def __init__(self, resource: Resource, shop: Workshop) -> None:
        self.resource = resource
        self.shop = shop
        self.folder = shop.settings.endpoints / resource.id
        self._variants: list[Variant] | None = None

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
        for variant in self._variants or ():
            variant.ask()

    def gone(self) -> bool:
        return not [variant for variant in self._variants or () if not variant.gone()]

    def kill(self) -> None:
        for variant in self._variants or ():
            variant.kill()

    def beat(self) -> None:
        """Nothing of an endpoint has to be kept."""

    def _serve(self) -> bool:
        if self._variants is None:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            given = self.resource.facts["variants"]
            self._variants = [Variant(self.folder, number, one, self.shop) for number, one in enumerate(given)]
        for variant in self._variants:
            variant.step()
        failed = [variant.failure for variant in self._variants if variant.state == "failed"]
        if failed:
            return self._fail(failed[0])
        ready = all(variant.state == "ready" for variant in self._variants)
        if ready and self.resource.status != "InService":
            self._update("InService", {"variants": self._described(), "address": self._variants[0].address})
        elif not ready and self.resource.status == "InService":
            self._update("SystemUpdating", {})
        return False

    def _described(self) -> list[dict[str, Any]]:
        addresses = {variant.name: variant.address for variant in self._variants or ()}
        return [{**given, "address": addresses[given["VariantName"]]} for given in self.resource.facts["variants"]]

    def _fail(self, failure: str) -> bool:
        self.kill()
        _log.warning("endpoint %s failed: %s", self.resource.name, failure)
        self._update("Failed", {"failure": failure})
        return True

    def _remove(self, resource: Resource | None) -> bool:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)
        if resource is not None:
            self.shop.store.delete(resource.id)
        return True

    def _update(self, status: str, facts: dict[str, Any]) -> None:
        self.resource = self.shop.store.update(self.resource.id, status, facts=facts, owner=self.shop.owner)
