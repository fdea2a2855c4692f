"""A tiny base model and rows for it, the same for every test of the engine that asks for no others."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_models import write_model, write_rows


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "llama", "llama")


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows") / "train.jsonl", 30).parent
