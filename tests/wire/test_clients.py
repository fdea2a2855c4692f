"""The clients' environments: exact pins, what is made, and that one which cannot be made says why."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from wire import clients

EXACT = re.compile(r"\d+\.\d+\.\d+")


def test_everything_is_pinned_and_no_registry_is_named() -> None:
    text = clients.LIST.read_text("utf-8")
    listed = clients.read(text)
    assert set(listed) == {"awscli", "sagemaker2", "sagemaker3", "node"}
    assert "sagemaker==2.257.7" in listed["sagemaker2"]
    assert "sagemaker==3.27.0" in listed["sagemaker3"]
    named = {pin.partition("==")[0].lower() for pins in listed.values() for pin in pins}
    assert not {name for name in named if name.startswith(("torch", "nvidia-", "triton"))}
    packages = json.loads(clients.PACKAGES.read_text("utf-8"))
    assert [version for version in packages["dependencies"].values() if not EXACT.fullmatch(version)] == []
    assert "http" not in text + clients.PACKAGES.read_text("utf-8")


@pytest.mark.parametrize("text", ["awscli==1.0", "[awscli]\nawscli>=1.0"])
def test_what_is_not_pinned_below_a_section_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected NAME==VERSION below"):
        clients.read(text)


def test_a_failed_environment_is_said_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTHIER_PIP_ARGS", "--no-index --isolated")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    said: list[str] = []
    assert not clients.make("broken", ("no-such-package-of-luthier==1.0",), tmp_path, said.append)
    assert len(said) == 1
    assert "no-such-package-of-luthier" in said[0]
    with pytest.raises(clients.NotMade, match=r"(?s)no-such-package-of-luthier.*run\.py test"):
        clients.python("broken", tmp_path)
    with pytest.raises(clients.NotMade, match="never made"):
        clients.python("absent", tmp_path)


def test_an_environment_is_made_once_for_its_pins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[str, ...]] = []

    def pip(folder: Path, pins: tuple[str, ...], extra: list[str]) -> None:
        folder.mkdir(parents=True)
        made.append(pins)

    monkeypatch.setattr(clients, "_pip", pip)
    said: list[str] = []
    for pins in (("a==1",), ("a==1",), ("a==2",)):
        assert clients.make("one", pins, tmp_path, said.append)
    assert made == [("a==1",), ("a==2",)]
    assert len(said) == 2
    assert clients.python("one", tmp_path) == tmp_path / "one" / "bin" / "python"
