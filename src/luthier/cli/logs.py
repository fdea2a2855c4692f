"""`luthier logs`: print a job's log through CloudWatch Logs' API."""

from __future__ import annotations

from typing import Annotated

import typer

from luthier.client.client import Client
from luthier.client.endpoint import find_endpoint
from luthier.defaults import DEFAULT_PORT

Host = Annotated[
    str | None,
    typer.Option(
        "--host", metavar="HOST", help="Address of the service; default $AWS_ENDPOINT_URL, else this machine."
    ),
]
Port = Annotated[
    int | None,
    typer.Option("--port", metavar="PORT", min=1, max=65535, help=f"Port of the service; default {DEFAULT_PORT}."),
]
Region = Annotated[
    str | None,
    typer.Option("--region", metavar="NAME", help="Region of the job; default as AWS's clients choose it."),
]


def logs(
    name: Annotated[str, typer.Argument(metavar="JOB", help="Name of a training or AutoML job.")],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Print new lines until the job has ended.")] = False,
    host: Host = None,
    port: Port = None,
    region: Region = None,
) -> int:
    """Print a job's log; with -f also new lines until the job ends.

    With -f the exit code is 0 if the job completed or was stopped, 1 if it failed.
    """
    with Client(find_endpoint(host, port), region) as client:
        for line in client.logs(client.job(name), follow):
            typer.echo(line)
        if not follow:
            return 0
        ended = client.job(name)
    typer.echo(f"luthier: {name}: {ended.status}" + (f": {ended.message}" if ended.message else ""), err=True)
    return 1 if ended.status == "Failed" else 0
