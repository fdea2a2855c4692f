"""Endpoints shared by the tests of this package: the embedded model's, a T5's, a finished run's."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from finished_runs import FinishedRuns
from serving.endpoints import Endpoint, listening
from tiny_models import write_model

from luthier.serving.model import ServedModel


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> FinishedRuns:
    return FinishedRuns(tmp_path_factory.mktemp("finished"))


@pytest.fixture(scope="session")
def tiny_model() -> ServedModel:
    return ServedModel.load("luthier/tiny", "cpu", lambda text: None)


@pytest.fixture(scope="session")
def tiny(tiny_model: ServedModel) -> Iterator[Endpoint]:
    with listening(tiny_model) as endpoint:
        yield endpoint


@pytest.fixture(scope="session")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    folder = write_model(tmp_path_factory.mktemp("bases") / "t5", "t5")
    with listening(ServedModel.load(str(folder), "cpu", lambda text: None, served_name="small-t5")) as endpoint:
        yield endpoint


@pytest.fixture(scope="session")
def tuned(finished: FinishedRuns) -> Iterator[Endpoint]:
    """A finished LoRA run on instruction rows, served from its artifact folder."""
    with listening(ServedModel.load(str(finished.get().folder.model), "cpu", lambda text: None)) as endpoint:
        yield endpoint
