"""`luthier serve` with the fake engine, for the storm: ``python storm_server.py``, its request on stdin.

Everything but the engine's program is the product's; `supervisor HOME` is what it starts in turn.
"""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path

from luthier import entrypoint, server
from luthier.jobs.settings import ServiceSettings
from luthier.launchers.local import LocalLauncher
from luthier.service import supervisor_program as supervisor
from luthier.service.supervisor_settings import encode_settings

ENGINE = (sys.executable, str(Path(__file__).with_name("storm_engine.py")))


def start_supervisor(settings: ServiceSettings) -> subprocess.Popen[bytes]:
    """As the product's, but for the program."""
    command = [sys.executable, __file__, "supervisor", str(settings.home)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    assert child.stdin is not None
    with suppress(BrokenPipeError), child.stdin:
        child.stdin.write(encode_settings(settings))
    return child


def main() -> None:
    if sys.argv[1:2] == ["supervisor"]:
        vars(supervisor)["LocalLauncher"] = partial(LocalLauncher, {"training": ENGINE})
        supervisor.main(sys.argv[2:])
    else:
        vars(server)["start_supervisor"] = start_supervisor
        server.main()


if __name__ == "__main__":
    entrypoint.run(main)
