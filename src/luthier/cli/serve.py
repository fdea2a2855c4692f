"""`luthier serve`: the service on this machine, handed over to luthier.server, which alone may import it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from luthier.cli.engine import Call
from luthier.cli.variables import undone
from luthier.home import home_root

Home = Annotated[
    Path | None,
    typer.Option(
        "--home", metavar="DIR", help="Where the service keeps everything; default $LUTHIER_HOME, else ~/.luthier."
    ),
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
        help="One job runs on each: cpu, or GPU ids, joined by + for one job on several: 0,1,2+3. "
        "Default: each GPU is one, else the CPU.",
    ),
]  # fmt: skip
StallSeconds = Annotated[
    float,
    typer.Option(
        "--stall-seconds", metavar="N",
        help="A job that for so long writes nothing and computes nothing is ended as Failed.",
    ),
]  # fmt: skip
StopSeconds = Annotated[
    float,
    typer.Option(
        "--stop-seconds", metavar="N",
        help="Time that an engine has to write a checkpoint when its job or the service is stopped.",
    ),
]  # fmt: skip
Limits = Annotated[
    list[str] | None,
    typer.Option(
        "--limit", metavar="NAME=VALUE",
        help="The most that each process of an engine or endpoint may take: memory (of addresses), file-size, "
        "as 64G or 500M; open-files, cpu-seconds. Repeat for more. Default: the system's limits.",
    ),
]  # fmt: skip
ProxyPort = Annotated[
    int | None,
    typer.Option(
        "--proxy-port", metavar="PORT", min=0, max=65535,
        help="Loopback port of the HTTPS proxy that `luthier env --proxy` uses; default: PORT + 1.",
    ),
]  # fmt: skip


def home(chosen: Path | None) -> Path:
    """The home that is meant, as an absolute path."""
    return chosen.expanduser().absolute() if chosen else home_root()


def serve(
    host: Annotated[
        str,
        typer.Option("--host", metavar="HOST", help="Address to listen on; beyond this machine only with access keys."),
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", metavar="PORT", min=0, max=65535, help="Port to listen on; 0: any free one.")
    ] = 8777,
    chosen: Home = None,
    database: Database = None,
    objects: Annotated[
        str | None,
        typer.Option("--objects", metavar="URL", help="Endpoint of an S3 elsewhere; default: the embedded store."),
    ] = None,
    slots: Slots = None,
    serve_on: Annotated[
        str, typer.Option("--serve-on", metavar="DEVICE", help="Where endpoints compute: cpu, or GPU ids as 0 or 0+1.")
    ] = "cpu",
    stall_seconds: StallSeconds = 3600.0,
    stop_seconds: StopSeconds = 120.0,
    limit: Limits = None,
    proxy_port: ProxyPort = None,
    no_proxy: Annotated[bool, typer.Option("--no-proxy", help="Start no HTTPS proxy.")] = False,
    no_auth: Annotated[
        bool, typer.Option("--no-auth", help="Take unsigned requests although there are keys; on loopback only.")
    ] = False,
    log: Annotated[
        str | None,
        typer.Option(
            "--log", metavar="FILE", help="JSON lines, one for each request; -: stderr. Default: HOME/logs/server.log."
        ),
    ] = None,
) -> Call:  # fmt: skip
    """Speak SageMaker's API on one port, and run the jobs that are asked for.

    Ready when http://HOST:PORT/_luthier/health answers 200; `eval "$(luthier env)"` then points AWS's clients here.
    Jobs, objects and keys lie in the home and outlive the process. docs/serving.md tells the whole.
    """
    # A service in a shell with `luthier env` in it would look for an S3 elsewhere, and for the Hub, at itself.
    before = undone(os.environ)
    os.environ.clear()
    os.environ.update(before)
    request: dict[str, Any] = {
        "home": str(home(chosen)), "host": host, "port": port, "database": database or "", "objects": objects or "",
        "slots": slots, "serve_on": serve_on,
        "stall_seconds": stall_seconds, "stop_seconds": stop_seconds, "limits": limit or [],
        "proxy_port": None if no_proxy else port and port + 1 if proxy_port is None else proxy_port,
        "no_auth": no_auth, "log": log or "",
    }  # fmt: skip
    return Call("luthier.server", (), request)
