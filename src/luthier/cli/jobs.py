"""`luthier jobs`: list and stop the service's jobs through SageMaker's API."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from luthier.cli.logs import Host, Port, Region
from luthier.cli.options import Json
from luthier.client.client import Client, JobSummary
from luthier.client.endpoint import find_endpoint
from luthier.errors import SettingError, did_you_mean

STATUSES = ("InProgress", "Completed", "Failed", "Stopping", "Stopped")
app = typer.Typer(help="List or stop jobs of the service.", no_args_is_help=True)


@app.command("list")
def list_jobs(
    status: Annotated[
        str | None, typer.Option("--status", metavar="STATUS", help=f"Only this status: {', '.join(STATUSES)}.")
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", metavar="N", min=1, max=10_000, help="Maximum number of jobs of each kind.")
    ] = 100,
    host: Host = None,
    port: Port = None,
    region: Region = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """List training and AutoML jobs, newest first."""
    if status is not None and status not in STATUSES:
        raise SettingError(f"--status {status}: expected {', '.join(STATUSES)}{did_you_mean(status, STATUSES)}")
    with Client(find_endpoint(host, port), region) as client:
        jobs = client.jobs(status, limit)
    if as_json:
        typer.echo(json.dumps([_to_json(job) for job in jobs], indent=1))
    elif not jobs:
        typer.echo(f"{client.endpoint}: no {f'{status} ' if status else ''}jobs in {client.region}")
    else:
        Console().print(_table(jobs))


@app.command("stop")
def stop(
    name: Annotated[str, typer.Argument(metavar="JOB", help="Name of a training or AutoML job.")],
    host: Host = None,
    port: Port = None,
    region: Region = None,
) -> None:
    """Ask a job to stop; it writes a checkpoint first."""
    with Client(find_endpoint(host, port), region) as client:
        job = client.stop(name)
    typer.echo(f"{job.name}: {job.status}")


def _to_json(job: JobSummary) -> dict[str, object]:
    return {name: value for name, value in asdict(job).items() if name != "details"}


def _table(jobs: list[JobSummary]) -> Table:
    table = Table("name", "kind", "status", "made", "took", box=None, pad_edge=False)
    for job in jobs:
        took = "" if job.ended is None else f"{job.ended - job.created:,.0f} s"
        made = time.strftime("%Y-%m-%d %H:%M", time.localtime(job.created))
        detail = f" ({job.secondary})" if job.secondary not in ("", job.status) else ""
        table.add_row(escape(job.name), job.kind, job.status + detail, made, took)
    return table
