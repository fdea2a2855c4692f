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
    """`logged` holds the fields without effect that were logged already, by name."""

    settings: ServiceSettings
    store: Store
    logged: set[str] = field(default_factory=set)


Operation = Callable[[Call, Service], dict[str, Any]]
Operations = Mapping[str, Operation]
