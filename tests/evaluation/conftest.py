"""Finished runs shared by the tests of this package."""

from __future__ import annotations

import pytest
from finished_runs import FinishedRuns


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> FinishedRuns:
    return FinishedRuns(tmp_path_factory.mktemp("finished"))
