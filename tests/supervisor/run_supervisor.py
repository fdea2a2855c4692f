"""A supervisor as a process, to be killed by tests: ``python run_supervisor.py HOME BUCKETS fake|real``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from supervisor.supervisor_harness import FAKE_ENGINE, FolderObjects

from luthier.jobs.settings import ServiceSettings
from luthier.jobs.store import Store
from luthier.launchers.local import LocalLauncher
from luthier.service.journal import configure_logging
from luthier.service.supervisor_program import watch_exit
from luthier.supervisor.context import DevicePool, SupervisorContext
from luthier.supervisor.lock import supervisor_lock
from luthier.supervisor.loop import Supervisor, new_owner


def main(home: Path, buckets: Path, engine: str) -> None:
    should_exit = watch_exit(os.getppid())
    configure_logging(home / "supervisor.log")
    settings = ServiceSettings(home=home, stop_seconds=10.0)
    with supervisor_lock(home, should_exit, lambda text: print(text, flush=True)) as is_held:
        if is_held:
            store = Store.open(settings.database_url)
            context = SupervisorContext(
                settings=settings, store=store, objects=FolderObjects(buckets), owner=new_owner(),
                devices=DevicePool(settings.slots),
                launcher=LocalLauncher({"training": FAKE_ENGINE} if engine == "fake" else {}), max_crashes=1000,
            )  # fmt: skip
            Supervisor(context).run(should_exit)
            store.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
