"""The entry point pauses garbage collection during imports and resumes it, also after an error."""

from __future__ import annotations

import gc

import pytest

from luthier import entrypoint


def test_nothing_is_collected_while_libraries_load() -> None:
    try:
        with entrypoint.without_garbage_collection():
            assert not gc.isenabled()
        assert gc.isenabled()
        assert gc.get_freeze_count() > 0
        with pytest.raises(ImportError), entrypoint.without_garbage_collection():
            raise ImportError("no such library")
        assert gc.isenabled()
    finally:
        gc.unfreeze()
