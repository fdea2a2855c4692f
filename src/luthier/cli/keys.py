"""`luthier keys`: create, list and disable the service's access keys, through luthier.service.keys."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from luthier.cli.options import Json
from luthier.cli.program import Program
from luthier.cli.serve import Database, Home, resolve_home

Allow = Annotated[
    list[str] | None,
    typer.Option(
        "--allow", metavar="RIGHT",
        help="What the key may do; may be repeated: s3://BUCKET, s3://BUCKET/PREFIX, jobs:PREFIX (names of jobs, "
        "models and endpoints), read (change nothing). Default: everything.",
    ),
]  # fmt: skip

app = typer.Typer(help="Create, list or disable access keys of the service.", no_args_is_help=True)


def _program(home: Path | None, database: str | None, do: str, **more: Any) -> Program:
    request = {"home": str(resolve_home(home)), "database": database or "", "do": do, **more}
    return Program("luthier.service.keys", (), request)


@app.command("create")
def create(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="User that signs with the key.")] = None,
    user: Annotated[str, typer.Option("--user", metavar="NAME", help="The same as NAME.")] = "admin",
    allow: Allow = None,
    home: Home = None,
    database: Database = None,
) -> Program:
    """Create a key and print it as shell lines; the secret is shown only once.

    As soon as there is a key, the service accepts only signed requests, also one that is already running.
    """
    return _program(home, database, "create", user=name or user, allow=allow or [])


@app.command("list")
def list_keys(home: Home = None, database: Database = None, as_json: Json = False) -> Program:
    """List the keys, without their secrets."""
    return _program(home, database, "list", json=as_json)


@app.command("disable")
def disable(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="The key's id, as `luthier keys list` shows it.")],
    home: Home = None,
    database: Database = None,
) -> Program:
    """Disable a key. Requests must still be signed when it was the last one."""
    return _program(home, database, "disable", id=key_id)
