"""docs/api.md is what the tables say."""

from __future__ import annotations

from pathlib import Path

from luthier.api import OPERATIONS
from reference_pages.api_page import api_page

DOCS = Path(__file__).resolve().parents[1] / "docs"


def test_the_page_is_current() -> None:
    assert (DOCS / "api.md").read_text("utf-8") == api_page(), "run: python -m reference_pages"


def test_it_names_every_operation() -> None:
    for operations in OPERATIONS.values():
        for name in operations:
            assert name in api_page()
