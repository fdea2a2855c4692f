"""`luthier env`: print shell lines that point AWS's clients at the service, or that undo this."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from luthier.cli.serve import Home, resolve_home
from luthier.cli.variables import (
    SAVED,
    SHELLS,
    client_variables,
    environment_before,
    proxy_variables,
    saved_variables,
    shell_lines,
    warnings,
)
from luthier.client.endpoint import ServiceInfo, fetch_service_info, find_endpoint
from luthier.defaults import DEFAULT_HOST, DEFAULT_PORT
from luthier.errors import UserError


def env(
    host: Annotated[str, typer.Option("--host", metavar="HOST", help="Address of the service.")] = DEFAULT_HOST,
    port: Annotated[
        int, typer.Option("--port", metavar="PORT", min=1, max=65535, help="Port of the service.")
    ] = DEFAULT_PORT,
    home: Home = None,
    proxy: Annotated[
        bool, typer.Option("--proxy", help="Also set the HTTPS proxy, for clients that only call amazonaws.com.")
    ] = False,
    shell: Annotated[
        Literal["sh", "fish"], typer.Option("--shell", metavar="SHELL", help="sh (also bash and zsh) or fish.")
    ] = "sh",
    unset: Annotated[bool, typer.Option("--unset", help="Print lines that restore the environment instead.")] = False,
) -> None:  # fmt: skip
    """Print the variables that point boto3, the AWS CLI and the SageMaker SDKs at the service.

    Use it as `eval "$(luthier env)"`; in fish: `luthier env --shell fish | source`. Your own credentials and region
    stay as they are.
    """
    before = environment_before(os.environ)
    new: dict[str, str] = {}
    if not unset:
        endpoint = find_endpoint(host, port)
        service = fetch_service_info(endpoint)
        if service is None:
            typer.echo(f"luthier: warning: nothing answers at {endpoint}; start it with: luthier serve", err=True)
        new = client_variables(endpoint, before, service)
        if proxy:
            new |= proxy_variables(endpoint, *_proxy(port, service, resolve_home(home)), before)
        for warning in warnings(service, before, proxy):
            typer.echo(f"luthier: warning: {warning}", err=True)
        new[SAVED] = saved_variables(new, before)
    for line in shell_lines(new, before, os.environ, SHELLS[shell]):
        typer.echo(line)


def _proxy(port: int, service: ServiceInfo | None, home: Path) -> tuple[int, Path]:
    """Return the proxy's port and the CA certificate to trust; UserError when the service has no proxy."""
    if service is not None and service.proxy is None:
        raise UserError("--proxy: the service was started with --no-proxy")
    certificate = home / "proxy" / "ca.pem"
    if not certificate.exists():
        raise UserError(
            f"--proxy: {certificate} not found; start the service on this machine, or set --home to its home"
        )
    if service is not None and hashlib.sha256(certificate.read_bytes()).hexdigest() != service.certificate:
        raise UserError(f"--proxy: the service has another certificate than {certificate}; set --home to its home")
    return (service.proxy if service is not None and service.proxy else port + 1), certificate
