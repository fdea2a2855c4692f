"""The fake engine, with settings of its own, as the API takes only real ones: ``python storm_engine.py FOLDER``."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from supervisor import fake_engine

SETTINGS = {"steps": "60", "step_seconds": "0.02", "save_steps": "3"}


class StormEngine(fake_engine.FakeEngine):
    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.settings = SETTINGS


if __name__ == "__main__":
    fake_engine.FakeEngine = StormEngine  # type: ignore[misc]
    fake_engine.main()
