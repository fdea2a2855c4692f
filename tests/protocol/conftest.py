"""One server for all tests of a module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from live_wire import LiveWire, live_wire


@pytest.fixture(scope="module")
def server() -> Iterator[LiveWire]:
    with live_wire() as live:
        yield live


@pytest.fixture
def wire(server: LiveWire) -> Iterator[LiveWire]:
    """The module's server, with nothing recorded and nothing to answer."""
    server.reset()
    yield server
    server.reset()
