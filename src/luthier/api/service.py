"""What the operations of the API share: the store and the settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from luthier.jobs.settings import ServiceSettings
from luthier.jobs.store import Store
from luthier.protocol.call import Call


@dataclass(frozen=True, slots=True)
class Service:
    """`logged` holds the names of the fields without effect that were already logged."""

    settings: ServiceSettings
    store: Store
    logged: set[str] = field(default_factory=set)


Operation = Callable[[Call, Service], dict[str, Any]]
Operations = Mapping[str, Operation]
