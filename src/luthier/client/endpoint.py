"""Where the service is, and what it says of itself at its own doors. Speaks plain HTTP, needs no credentials."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from luthier.errors import UserError

HOST, PORT = "127.0.0.1", 8777
SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class About:
    """What a running service says of itself at /_luthier/version.

    `signatures`: requests have to be signed with one of its keys; `proxy`: the port of its HTTPS proxy on loopback,
    None without one; `home` as in `luthier serve`.
    """

    version: str
    signatures: bool
    proxy: int | None
    home: str


def find_endpoint(host: str | None, port: int | None, environment: Mapping[str, str] = os.environ) -> str:
    """The service's address: as named, else by the variables of `luthier env`, else where it listens by default."""
    if host is None and port is None:
        for name in ("AWS_ENDPOINT_URL_SAGEMAKER", "AWS_ENDPOINT_URL"):
            if environment.get(name):
                return environment[name].rstrip("/")
    name = host or HOST
    return f"http://{f'[{name}]' if ':' in name else name}:{PORT if port is None else port}"


def ask(endpoint: str) -> About | None:
    """What the service at `endpoint` says; None where nothing answers, UserError where something else does."""
    where = urlsplit(endpoint)
    if where.scheme != "http" or where.hostname is None:
        raise UserError(f"{endpoint}: expected http://HOST:PORT")
    http = importlib.import_module("http.client")  # 20 ms to import, which `luthier --help` need not take
    connection = http.HTTPConnection(where.hostname, where.port or 80, timeout=SECONDS)
    try:
        connection.request("GET", "/_luthier/version")
        answer = connection.getresponse()
        said: Any = json.loads(answer.read(65536)) if answer.status == 200 else None
    except (OSError, http.HTTPException):
        return None
    except ValueError:
        said = None
    finally:
        connection.close()
    if not isinstance(said, dict) or not {*About.__slots__} <= said.keys():
        raise UserError(f"{endpoint}: what answers there is not Luthier's service; name it by --host and --port")
    return About(**{name: said[name] for name in About.__slots__})
