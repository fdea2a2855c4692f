"""Fixtures of the data room's tests: the small tokenizer, and `preparing`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from data.row_files import Preparing, make_tokenizer

from luthier.data.prepare import Dataset, DataSettings, prepare
from luthier.data.tokenize import Tokenizer


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def tokenizer(tokenizer_folder: Path) -> Tokenizer:
    return Tokenizer.load(tokenizer_folder)


@pytest.fixture
def preparing(tokenizer: Tokenizer, tmp_path: Path) -> Preparing:
    """prepare(training=..., validation=..., **settings) with the small tokenizer and a cache of the test's own."""

    def call(training: Path, validation: Path | None = None, test: Path | None = None, **settings: Any) -> Dataset:
        channels = {"training": training, "validation": validation, "test": test}
        given = {name: path for name, path in channels.items() if path is not None}
        return prepare(given, DataSettings(**settings), tokenizer, tmp_path / "cache")

    return call
