"""`luthier objects`: maintenance of the service's object store, through luthier.objects.scrub."""

from __future__ import annotations

from typing import Annotated

import typer

from luthier.cli.options import Json
from luthier.cli.program import Program
from luthier.cli.serve import Database, Home, resolve_home

app = typer.Typer(help="Check the service's object store.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keep `check` a command of its own."""


@app.command("check")
def check(
    home: Home = None,
    database: Database = None,
    quick: Annotated[bool, typer.Option("--quick", help="Compare sizes only, without reading the files.")] = False,
    as_json: Json = False,
) -> Program:
    """Check that each object's files are there and unchanged; exit code 1 if not.

    It names the objects whose files are missing, truncated or changed, as after a disk failure or an incomplete backup.
    It only reads, and the service may run meanwhile.
    """
    request = {"home": str(resolve_home(home)), "database": database or "", "quick": quick, "json": as_json}
    return Program("luthier.objects.scrub", (), request)
