"""A live server with small models of the real classes where real weights would lie, and clients that talk to it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from tiny_models import write_model
from wire.driver import Driver
from wire.server import LiveServer

from luthier.catalog import find

# Entry of the catalogue -> the build in tiny_models that lies under its name.
MODELS = {
    "flan-t5-base": "t5", "flan-t5-large": "t5", "llama-2-7b": "llama", "gpt2-xl": "gpt2",
    "falcon-7b-instruct": "falcon_7b", "gpt-neo-125m": "gpt_neo",
}  # fmt: skip
# These wait most of their time for the SDKs' own polls, so they begin before everything else.
FIRST = ("test_snippets.py", "test_notebooks.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in FIRST)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for $LUTHIER_MODELS."""
    folder = tmp_path_factory.mktemp("models")
    for name, build in MODELS.items():
        entry = find(name)
        assert entry is not None
        _write_text(write_model(folder / entry.source, build, positions=1024) / "model.safetensors")
    return folder


def _write_text(file: Path) -> None:
    """Give control tokens the logit 0: a random model that writes nothing else has no report."""
    weights = load_file(file)
    heads = [name for name in weights if "lm_head" in name or "embed_out" in name]
    for name in heads or [name for name in weights if re.search(r"embed_tokens|shared|wte|embed_in|word_emb", name)]:
        weights[name][:4] = 0.0
    save_file(weights, file, metadata={"format": "pt"})


@pytest.fixture(scope="session")
def open_server(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """One server without keys for all tests of a worker."""
    with LiveServer(tmp_path_factory.mktemp("open"), models) as server:
        yield server


@pytest.fixture(scope="session")
def signed_server(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """One server that takes signed requests only."""
    with LiveServer(tmp_path_factory.mktemp("signed"), models, signed=True) as server:
        yield server


@pytest.fixture
def driver(open_server: LiveServer, tmp_path: Path) -> Iterator[Driver]:
    """Clients of the open server, in a folder of their own; the server lives before the test and after it."""
    open_server.check()
    yield Driver(open_server, tmp_path)
    open_server.check()


@pytest.fixture
def signing_driver(signed_server: LiveServer, tmp_path: Path) -> Iterator[Driver]:
    """The same with the server that verifies signatures."""
    signed_server.check()
    yield Driver(signed_server, tmp_path)
    signed_server.check()
