"""Slots: as named, or as found."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from luthier.errors import SettingError
from luthier.service.devices import check_device, parse_slots


@pytest.mark.parametrize(
    ("text", "expected"),
    [("cpu", ("cpu",)), ("cpu,cpu", ("cpu", "cpu")), ("0, 1,2+3", ("0", "1", "2+3")), ("cpu,0", ("cpu", "0"))],
)
def test_slots_as_named(text: str, expected: tuple[str, ...]) -> None:
    assert parse_slots(text) == expected


@pytest.mark.parametrize("text", ["", "gpu", "0+", "0;1", "-1", "0,0", "0+0", "1,0+1", "cpu,,cpu", "\u0663"])
def test_slots_that_make_no_sense(text: str) -> None:
    with pytest.raises(SettingError, match="--slots"):
        parse_slots(text)


def test_one_device() -> None:
    assert [check_device(name, "--serve-on") for name in ("cpu", "0", "2+3")] == ["cpu", "0", "2+3"]
    with pytest.raises(SettingError, match="--serve-on: 'gpu' is not a device; expected cpu, or GPU ids"):
        check_device("gpu", "--serve-on")


@pytest.mark.parametrize(
    ("script", "expected"),
    [("printf '0\\n1\\n'", ("0", "1")), ("exit 9", ("cpu",)), ("printf ''", ("cpu",))],
    ids=["two", "no driver", "none"],
)
def test_slots_as_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, expected: tuple[str, ...]
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert parse_slots(None) == expected


def test_without_nvidias_tool_there_is_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert parse_slots(None) == ("cpu",)
