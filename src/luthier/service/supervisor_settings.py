"""How the server starts its supervisor: it sends the settings as JSON to its stdin.

They are no arguments, because a database's URL may hold a password and every user can read command lines.
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


def start_supervisor(settings: ServiceSettings) -> subprocess.Popen[bytes]:
    """Start the supervisor of `settings` as a child that ends when this process does.

    It has a session of its own, so that Ctrl-C reaches only the server.
    """
    command = [sys.executable, "-P", "-m", MODULE, str(settings.home)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    assert child.stdin is not None
    try:
        with child.stdin:
            child.stdin.write(encode_settings(settings))
    except BrokenPipeError:
        pass  # it has ended; the caller finds its exit code
    return child


def encode_settings(settings: ServiceSettings) -> bytes:
    """The settings as JSON."""
    return json.dumps({**asdict(settings), "home": str(settings.home)}).encode()


def decode_settings(home: Path, content: bytes) -> ServiceSettings:
    """The settings of `home` from `encode_settings`; the defaults where nothing was sent."""
    values: dict[str, Any] = json.loads(content) if content.strip() else {}
    if "slots" in values:
        values["slots"] = tuple(values["slots"])
    return ServiceSettings(**{**values, "home": home.absolute()})
