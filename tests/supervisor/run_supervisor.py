"""A supervisor as a process, to be killed by tests: ``python run_supervisor.py HOME BUCKETS fake|real``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from supervisor.workbench import FAKE_ENGINE, FolderObjects

from luthier.jobs.settings import ServiceSettings
from luthier.jobs.store import Store
from luthier.service.journal import open_journal
from luthier.service.supervisor_program import leaving
from luthier.supervisor.lock import alone
from luthier.supervisor.loop import Supervisor, new_owner
from luthier.supervisor.workshop import ENGINE, Slots, Workshop


def main(home: Path, buckets: Path, engine: str) -> None:
    leave = leaving(os.getppid())
    open_journal(home / "supervisor.log")
    settings = ServiceSettings(home=home, stop_seconds=10.0)
    with alone(home, leave, lambda text: print(text, flush=True)) as held:
        if held:
            store = Store.open(settings.database_url)
            shop = Workshop(
                settings, store, FolderObjects(buckets), new_owner(), Slots(settings.slots),
                engine=FAKE_ENGINE if engine == "fake" else ENGINE, deaths=1000,
            )  # fmt: skip
            Supervisor(shop).run(leave)
            store.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
