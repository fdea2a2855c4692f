"""`luthier serve`: start the service on this machine, by running luthier.server."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from luthier.cli.program import Program
from luthier.cli.variables import environment_before
from luthier.defaults import DEFAULT_HOST, DEFAULT_PORT
from luthier.home import home_root

Home = Annotated[
    Path | None,
    typer.Option("--home", metavar="DIR", help="Folder of the service's data; default $LUTHIER_HOME, else ~/.luthier."),
]
Database = Annotated[
    str | None,
    typer.Option(
        "--database", metavar="URL", envvar="LUTHIER_DATABASE",
        help="postgresql://USER@HOST/NAME or sqlite:///FILE; default $LUTHIER_DATABASE, else HOME/luthier.sqlite.",
    ),
]  # fmt: skip
Slots = Annotated[
    str | None,
    typer.Option(
        "--slots", metavar="LIST",
        help="Devices, one job on each: cpu, or GPU ids; + joins GPUs for one job: 0,1,2+3. "
        "Default: one slot per GPU, else the CPU.",
    ),
]  # fmt: skip
StallSeconds = Annotated[
    float,
    typer.Option(
        "--stall-seconds", metavar="N",
        help="Fail a job that writes nothing and computes nothing for N seconds.",
    ),
]  # fmt: skip
StopSeconds = Annotated[
    float,
    typer.Option(
        "--stop-seconds", metavar="N",
        help="Seconds that a stopped job has to write its checkpoint and model; its checkpoint, if the service stops.",
    ),
]  # fmt: skip
Limits = Annotated[
    list[str] | None,
    typer.Option(
        "--limit", metavar="NAME=VALUE",
        help="Resource limit of each job and endpoint process: memory (address space) or file-size, such as 64G or "
        "500M; open-files; cpu-seconds. May be repeated. Default: the system's limits.",
    ),
]  # fmt: skip
ProxyPort = Annotated[
    int | None,
    typer.Option(
        "--proxy-port", metavar="PORT", min=0, max=65535,
        help="Loopback port of the HTTPS proxy that `luthier env --proxy` uses; default: PORT + 1.",
    ),
]  # fmt: skip


def resolve_home(home: Path | None) -> Path:
    """Return --home or its default as an absolute path."""
    return home.expanduser().absolute() if home else home_root()


def serve(
    host: Annotated[
        str,
        typer.Option("--host", metavar="HOST", help="Address to listen on; other than loopback only with access keys."),
    ] = DEFAULT_HOST,
    port: Annotated[
        int, typer.Option("--port", metavar="PORT", min=0, max=65535, help="Port to listen on; 0: any free port.")
    ] = DEFAULT_PORT,
    home: Home = None,
    database: Database = None,
    objects: Annotated[
        str | None,
        typer.Option("--objects", metavar="URL", help="URL of an external S3 endpoint; default: the embedded store."),
    ] = None,
    slots: Slots = None,
    serve_on: Annotated[
        str, typer.Option("--serve-on", metavar="DEVICE", help="Device of endpoints: cpu, or GPU ids such as 0 or 0+1.")
    ] = "cpu",
    stall_seconds: StallSeconds = 3600.0,
    stop_seconds: StopSeconds = 120.0,
    limit: Limits = None,
    proxy_port: ProxyPort = None,
    no_proxy: Annotated[bool, typer.Option("--no-proxy", help="Start no HTTPS proxy.")] = False,
    no_auth: Annotated[
        bool, typer.Option("--no-auth", help="Accept unsigned requests even if there are keys; on loopback only.")
    ] = False,
    log: Annotated[
        str | None,
        typer.Option(
            "--log", metavar="FILE", help="Request log as JSON lines; -: stderr. Default: HOME/logs/server.log."
        ),
    ] = None,
) -> Program:  # fmt: skip
    """Serve SageMaker's API on one port and run the requested jobs.

    The service is ready when http://HOST:PORT/_luthier/health answers 200; `eval "$(luthier env)"` then points AWS's
    clients at it. Jobs, objects and keys are stored in the home folder and survive a restart. See docs/serving.md.
    """
    # With the variables of `luthier env`, the service would call itself for an external S3 and for the Hub.
    before = environment_before(os.environ)
    os.environ.clear()
    os.environ.update(before)
    request: dict[str, Any] = {
        "home": str(resolve_home(home)), "host": host, "port": port, "database": database or "",
        "objects": objects or "", "slots": slots, "serve_on": serve_on,
        "stall_seconds": stall_seconds, "stop_seconds": stop_seconds, "limits": limit or [],
        "proxy_port": None if no_proxy else port and port + 1 if proxy_port is None else proxy_port,
        "no_auth": no_auth, "log": log or "",
    }  # fmt: skip
    return Program("luthier.server", (), request)
