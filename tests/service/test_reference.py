"""docs/api.md is what the tables say."""

from __future__ import annotations

from pathlib import Path

from luthier.api import OPERATIONS
from luthier.service.reference import page

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_the_page_is_current() -> None:
    assert (DOCS / "api.md").read_text("utf-8") == page(), "run: python -m luthier.service.reference docs"


def test_it_names_every_operation() -> None:
    for operations in OPERATIONS.values():
        for name in operations:
            assert name in page()
