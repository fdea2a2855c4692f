"""The documentation: generated pages are current, links work, and the commands, files and terms it names exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from luthier import __version__
from luthier.catalog.hyperparameters import TABLE
from reference_pages import PAGES, write
from reference_pages.cli_page import commands

ROOT = Path(__file__).resolve().parent.parent
WRITTEN = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")), *(ROOT / ".github").rglob("*.md")]


@pytest.mark.parametrize("name", PAGES)
def test_generated_pages_are_current(name: str, tmp_path: Path) -> None:
    write(tmp_path)
    command = "run: python -m reference_pages"
    assert (ROOT / "docs" / name).read_text("utf-8") == (tmp_path / name).read_text("utf-8"), command


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
def test_links_point_to_files(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text("utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: page.name)
def test_commands_in_the_pages_exist(page: Path) -> None:
    known = {path.split()[1] for path, _ in commands()} | {"COMMAND"}
    blocks = re.findall(r"^(?:    |\$ )luthier (\w+)", page.read_text("utf-8"), re.MULTILINE)
    assert set(blocks) <= known


def test_the_changelog_starts_with_the_next_and_this_version() -> None:
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert headings[:2] == ["Unreleased", __version__]


def read_tree() -> dict[str, list[str]]:
    """README's tree of src/luthier: each entry at top level, with the file patterns listed under it."""
    block = (ROOT / "README.md").read_text("utf-8").partition("```\nsrc/luthier/\n")[2].partition("```")[0]
    tree: dict[str, list[str]] = {}
    for indent, name in re.findall(r"^(  |    )([\w.*/]+)  ", block, re.MULTILINE):
        if indent == "  ":
            tree[name] = []
        else:
            tree[list(tree)[-1]].append(name)
    return tree


def test_the_tree_in_the_readme_lists_every_package_and_module() -> None:
    source = ROOT / "src" / "luthier"
    packages = {f"{path.parent.name}/" for path in source.glob("*/__init__.py")}
    tree = read_tree()
    assert set(tree) == packages | {path.name for path in source.glob("*.py")}
    assert all(len(patterns) == len(set(patterns)) for patterns in tree.values())
    missing = [f"{name}{pattern}" for name, patterns in tree.items() for pattern in patterns
               if not any((source / name).glob(pattern))]  # fmt: skip
    assert missing == []


def test_the_files_in_the_table_of_contributing_exist() -> None:
    table = (ROOT / "CONTRIBUTING.md").read_text("utf-8").partition("## Where things go")[2]
    paths = re.findall(r"`([\w*]+/[\w*/.]*|\w+\.py)`", table)
    assert len(paths) > 20
    assert [path for path in paths if not any(any((ROOT / root).glob(path)) for root in ("src/luthier", "."))] == []


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: page.name)
def test_modules_named_in_the_pages_exist(page: Path) -> None:
    paths = re.findall(r"`([a-z_]+/[\w/.]+\.py)`", page.read_text("utf-8"))
    assert [
        path for path in paths if not any((root / path).exists() for root in (ROOT / "src" / "luthier", ROOT))
    ] == []


def test_each_term_of_the_glossary_is_used_in_the_documentation() -> None:
    terms = re.findall(r"^\| \*\*(.+?)\*\* \|", (ROOT / "docs" / "glossary.md").read_text("utf-8"), re.MULTILINE)
    text = " ".join(page.read_text("utf-8").lower() for page in WRITTEN if page.name != "glossary.md")
    text = " ".join(text.split())
    assert len(terms) >= 20
    assert terms == sorted(terms)
    assert [term for term in terms if term not in text] == []
