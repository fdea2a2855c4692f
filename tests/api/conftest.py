"""A wire for each test: one for all of them, emptied before each."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from api.wire_client import WireClient


@pytest.fixture(scope="session")
def shared_wire(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WireClient]:
    made = WireClient(tmp_path_factory.mktemp("wire"))
    yield made
    made.store.close()


@pytest.fixture
def wire(shared_wire: WireClient) -> WireClient:
    shared_wire.reset()
    return shared_wire
