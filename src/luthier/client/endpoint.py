"""Finds the service's address and reads /_luthier/version over HTTP, without credentials."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from luthier.defaults import DEFAULT_HOST, DEFAULT_PORT
from luthier.errors import UserError

SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class ServiceInfo:
    """What a running service answers at /_luthier/version.

    `signatures`: requests must be signed with one of its keys; `proxy`: the loopback port of its HTTPS proxy, None
    without one; `certificate`: the SHA-256 of the file of its CA certificate, in hex.
    """

    version: str
    signatures: bool
    proxy: int | None
    certificate: str


def find_endpoint(host: str | None, port: int | None, environment: Mapping[str, str] = os.environ) -> str:
    """Return the service's URL: from the arguments, else from the variables of `luthier env`, else the default."""
    if host is None and port is None:
        for name in ("AWS_ENDPOINT_URL_SAGEMAKER", "AWS_ENDPOINT_URL"):
            if environment.get(name):
                return environment[name].rstrip("/")
    host = host or DEFAULT_HOST
    return f"http://{f'[{host}]' if ':' in host else host}:{DEFAULT_PORT if port is None else port}"


def fetch_service_info(endpoint: str) -> ServiceInfo | None:
    """Return what the service at `endpoint` answers; None if nothing answers, UserError if it is another server."""
    url = urlsplit(endpoint)
    if url.scheme != "http" or url.hostname is None:
        raise UserError(f"{endpoint}: expected http://HOST:PORT")
    http = importlib.import_module("http.client")  # takes 20 ms; `luthier --help` does not need it
    connection = http.HTTPConnection(url.hostname, url.port or 80, timeout=SECONDS)
    try:
        connection.request("GET", "/_luthier/version")
        response = connection.getresponse()
        document: Any = json.loads(response.read(65536)) if response.status == 200 else None
    except (OSError, http.HTTPException):
        return None
    except ValueError:
        document = None
    finally:
        connection.close()
    if not isinstance(document, dict) or not {*ServiceInfo.__slots__} <= document.keys():
        raise UserError(f"{endpoint}: the server there is not Luthier's service; set --host and --port")
    return ServiceInfo(**{name: document[name] for name in ServiceInfo.__slots__})
