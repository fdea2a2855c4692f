"""The pages of docs/ that are generated from the code: docs/cli.md, docs/hyperparameters.md and docs/api.md.

A test compares them with the committed files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from reference_pages.api_page import api_page
from reference_pages.cli_page import cli_page
from reference_pages.hyperparameters_page import hyperparameters_page

PAGES: Mapping[str, Callable[[], str]] = {
    "api.md": api_page,
    "cli.md": cli_page,
    "hyperparameters.md": hyperparameters_page,
}


def write(folder: Path) -> None:
    """Write every page to `folder`."""
    for name, page in PAGES.items():
        (folder / name).write_text(page(), encoding="utf-8")
