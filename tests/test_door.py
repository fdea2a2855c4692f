"""The door keeps the garbage collector out of imports, and lets it in again whatever happens."""

from __future__ import annotations

import gc

import pytest

from luthier import door


def test_nothing_is_collected_while_libraries_load() -> None:
    try:
        with door.loading():
            assert not gc.isenabled()
        assert gc.isenabled()
        assert gc.get_freeze_count() > 0
        with pytest.raises(ImportError), door.loading():
            raise ImportError("no such library")
        assert gc.isenabled()
    finally:
        gc.unfreeze()
