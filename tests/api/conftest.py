"""A desk for each test: one for all of them, emptied before each."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from api.desk import Desk


@pytest.fixture(scope="session")
def shared_desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    made = Desk(tmp_path_factory.mktemp("desk"))
    yield made
    made.store.close()


@pytest.fixture
def desk(shared_desk: Desk) -> Desk:
    shared_desk.reset()
    return shared_desk
