"""`luthier keys`: access keys of the service, kept in its database; the service's own program does the work."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from luthier.cli.engine import Call
from luthier.cli.options import Json
from luthier.cli.serve import Database, Home, home

app = typer.Typer(help="Make, list or disable access keys of the service.", no_args_is_help=True)


def _call(chosen: Path | None, database: str | None, do: str, **more: Any) -> Call:
    return Call("luthier.service.keys", (), {"home": str(home(chosen)), "database": database or "", "do": do, **more})


@app.command("create")
def create(
    user: Annotated[str, typer.Option("--user", metavar="NAME", help="Who will sign with it.")] = "admin",
    chosen: Home = None,
    database: Database = None,
) -> Call:
    """Make a key and print it, as lines for a shell; the secret is shown this once.

    From the first key on the service takes signed requests only, also the one that is running.
    """
    return _call(chosen, database, "create", user=user)


@app.command("list")
def list_keys(chosen: Home = None, database: Database = None, as_json: Json = False) -> Call:
    """Show the keys, without their secrets."""
    return _call(chosen, database, "list", json=as_json)


@app.command("disable")
def disable(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="The key's id, as `luthier keys list` shows it.")],
    chosen: Home = None,
    database: Database = None,
) -> Call:
    """Refuse a key from now on. Requests stay signed when it was the last one."""
    return _call(chosen, database, "disable", id=key_id)
