"""How a server starts its supervisor: the settings travel as JSON on its stdin.

Not as arguments, because a database's URL may hold a password, and every user of a machine can read command lines.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from luthier.jobs.settings import ServiceSettings

MODULE = "luthier.service.supervisor_program"


def start(settings: ServiceSettings) -> subprocess.Popen[bytes]:
    """Start the supervisor of `settings` as a child that ends when this process does.

    It has a session of its own, so that a Ctrl-C reaches it through its server alone.
    """
    command = [sys.executable, "-P", "-m", MODULE, str(settings.home)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    assert child.stdin is not None
    try:
        with child.stdin:
            child.stdin.write(written(settings))
    except BrokenPipeError:
        pass  # it has ended, and its exit code is for the caller to find
    return child


def written(settings: ServiceSettings) -> bytes:
    """The settings as they are sent."""
    return json.dumps({**asdict(settings), "home": str(settings.home)}).encode()


def read(home: Path, sent: bytes) -> ServiceSettings:
    """The settings of `home` as `written` sent them; the defaults where nothing was sent."""
    given: dict[str, Any] = json.loads(sent) if sent.strip() else {}
    if "slots" in given:
        given["slots"] = tuple(given["slots"])
    return ServiceSettings(**{**given, "home": home.absolute()})
