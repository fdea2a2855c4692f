"""`luthier env`: the variables that lead AWS's clients to the service, as lines for a shell, and the way back."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from luthier.cli.serve import Home, home
from luthier.cli.variables import MARK, SHELLS, lines, proxy_variables, undone, variables, warnings
from luthier.client.endpoint import HOST, PORT, About, ask, find_endpoint
from luthier.errors import UserError


def env(
    host: Annotated[str, typer.Option("--host", metavar="HOST", help="Address of the service.")] = HOST,
    port: Annotated[int, typer.Option("--port", metavar="PORT", min=1, max=65535, help="Port of the service.")] = PORT,
    chosen: Home = None,
    proxy: Annotated[
        bool, typer.Option("--proxy", help="Also the HTTPS proxy, for clients that insist on amazonaws.com.")
    ] = False,
    shell: Annotated[
        Literal["sh", "fish"], typer.Option("--shell", metavar="SHELL", help="sh (bash, zsh and their like) or fish.")
    ] = "sh",
    unset: Annotated[bool, typer.Option("--unset", help="Print the way back instead.")] = False,
) -> None:  # fmt: skip
    """Print the variables that lead boto3, the AWS CLI and the SageMaker SDKs to the service.

    Use it as `eval "$(luthier env)"`, in fish `luthier env --shell fish | source`. Credentials and a region of your own
    stay as they are.
    """
    before = undone(os.environ)
    wanted: dict[str, str] = {}
    if not unset:
        endpoint = find_endpoint(host, port)
        about = ask(endpoint)
        if about is None:
            typer.echo(f"luthier: warning: nothing answers at {endpoint}; start it with: luthier serve", err=True)
        wanted = variables(endpoint, before, about)
        if proxy:
            wanted |= proxy_variables(endpoint, *_proxy(port, about, home(chosen)), before)
        for warning in warnings(about, before, proxy):
            typer.echo(f"luthier: warning: {warning}", err=True)
        wanted[MARK] = json.dumps({name: before.get(name) for name in wanted})
    for line in lines(wanted, before, os.environ, SHELLS[shell]):
        typer.echo(line)


def _proxy(port: int, about: About | None, chosen: Path) -> tuple[int, Path]:
    """The proxy's port and the certificate to trust; UserError where the service has none."""
    if about is not None and about.proxy is None:
        raise UserError("--proxy: the service was started with --no-proxy")
    certificate = (Path(about.home) if about is not None and about.home else chosen) / "proxy" / "ca.pem"
    if not certificate.exists():
        raise UserError(f"--proxy: {certificate} is not there; start the service first, on this machine")
    return (about.proxy if about is not None and about.proxy else port + 1), certificate
