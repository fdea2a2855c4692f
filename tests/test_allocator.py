"""tcmalloc is preloaded into the engine's programs when it is installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from luthier.allocator import find_tcmalloc, preload
from luthier.errors import SettingError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "libtcmalloc_minimal.so.4").touch()
    return tmp_path


def test_tcmalloc_is_preloaded_unless_the_user_chose_otherwise(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    library = str(folder / "libtcmalloc_minimal.so.4")
    empty = tmp_path_factory.mktemp("empty")
    assert preload({}, [empty, folder]) == {"LD_PRELOAD": library}
    assert preload({"LUTHIER_ALLOCATOR": "auto", "LD_PRELOAD": ""}, [folder]) == {"LD_PRELOAD": library}
    assert preload({"LD_PRELOAD": "/other.so"}, [folder]) == {}
    assert preload({"LUTHIER_ALLOCATOR": "system"}, [folder]) == {}
    assert preload({}, [empty]) == {}
    monkeypatch.setattr(sys, "platform", "darwin")
    assert preload({}, [folder]) == {}


def test_an_unknown_choice_is_refused() -> None:
    with pytest.raises(SettingError, match="LUTHIER_ALLOCATOR=sytem; did you mean 'system'"):
        preload({"LUTHIER_ALLOCATOR": "sytem"})


@pytest.mark.skipif(find_tcmalloc() is None, reason="tcmalloc is not installed")
@pytest.mark.parametrize(("choice", "is_loaded"), [("auto", True), ("system", False)])
def test_an_engine_program_runs_with_it(choice: str, is_loaded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTHIER_ALLOCATOR", choice)
    done = subprocess.run(
        [sys.executable, "-m", "luthier", "doctor", "--json"], check=True, capture_output=True, text=True, timeout=120
    )
    assert ('"tcmalloc": "in use"' in done.stdout) == is_loaded
