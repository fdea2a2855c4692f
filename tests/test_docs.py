"""The generated pages are current, links lead somewhere, and what the pages name exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from luthier import __version__
from luthier.catalog.hyperparameters import TABLE
from luthier.cli.reference import PAGES, commands, write

ROOT = Path(__file__).resolve().parent.parent
WRITTEN = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("name", PAGES)
def test_generated_pages_are_current(name: str, tmp_path: Path) -> None:
    write(tmp_path)
    again = "run: python -m luthier.cli.reference docs"
    assert (ROOT / "docs" / name).read_text("utf-8") == (tmp_path / name).read_text("utf-8"), again


def test_the_reference_names_every_command_option_and_hyperparameter() -> None:
    page = (ROOT / "docs" / "cli.md").read_text("utf-8")
    for path, _ in commands():
        assert f"## {path}\n" in page
    for option in ("--model", "--kind", "--validation", "--set", "--resume", "--accept-eula", "--shots", "--merged"):
        assert f"`{option}" in page
    table = (ROOT / "docs" / "hyperparameters.md").read_text("utf-8")
    for name in TABLE:
        assert f"| `{name}` |" in table


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text("utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: page.name)
def test_commands_in_the_pages_exist(page: Path) -> None:
    known = {path.split()[1] for path, _ in commands()} | {"COMMAND"}
    blocks = re.findall(r"^(?:    |\$ )luthier (\w+)", page.read_text("utf-8"), re.MULTILINE)
    assert set(blocks) <= known


def test_the_changelog_starts_with_this_version() -> None:
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert headings[0] == __version__
