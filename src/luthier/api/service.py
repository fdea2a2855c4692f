"""What an operation of the API may use: the store, and the settings that the service was started with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from luthier.jobs.settings import ServiceSettings
from luthier.jobs.store import Store
from luthier.protocol.call import Call


@dataclass(frozen=True, slots=True)
class Service:
    """`notes` holds what was said once and need not be said again (fields without local meaning, by name)."""

    settings: ServiceSettings
    store: Store
    notes: set[str] = field(default_factory=set)


Operation = Callable[[Call, Service], dict[str, Any]]
Operations = Mapping[str, Operation]
