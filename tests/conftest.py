"""What every test starts from: no settings of the user's, an own cache, and `luthier` as a child process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from child import Luthier
from databases import database_url, postgres_server, store
from hypothesis import settings

settings.register_profile("without a clock", deadline=None)
settings.load_profile("without a clock")

__all__ = ["database_url", "postgres_server", "store"]


@pytest.fixture(autouse=True)
def own_surroundings(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the developer's Luthier variables, Hub token, cache and AWS account out of every test."""
    for name in list(os.environ):
        if name.startswith(("LUTHIER_", "AWS_")) or name in ("HF_TOKEN", "HF_HOME", "HF_HUB_CACHE"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path_factory.getbasetemp() / "luthier-cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def luthier(tmp_path: Path) -> Luthier:
    """Run `luthier ARGUMENTS` as a child in tmp_path; its code, output and errors as text."""

    def run(*arguments: str | Path, cwd: Path = tmp_path, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "luthier", *map(str, arguments)]
        environment = {**os.environ, "COLUMNS": "120", "PYTHONWARNINGS": "error::ResourceWarning"}
        return subprocess.run(
            command, cwd=cwd, capture_output=True, text=True, timeout=timeout, env=environment, check=False
        )

    return run
