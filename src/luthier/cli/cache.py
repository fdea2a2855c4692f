"""`luthier cache`: list or delete the prepared data kept between runs.

Sees the cache as folders; data/cache.py defines their content. A deleted entry is prepared again by the next run.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from luthier.cli.options import Json
from luthier.home import cache_root

_HASH = re.compile(r"[0-9a-f]{64}")  # the names that data/cache.py gives its folders

app = typer.Typer(help="List or delete the prepared data kept between runs.", no_args_is_help=True)


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """One folder of the cache; `modified` is the time of the last write, in seconds since 1970."""

    name: str
    bytes: int
    modified: float


def read_entries(folder: Path) -> list[CacheEntry]:
    """Return the cache entries in `folder`, sorted by name; ignore files and folders that are not the cache's."""
    if not folder.is_dir():
        return []
    paths = (path for path in folder.iterdir() if _HASH.search(path.name) and path.is_dir() and not path.is_symlink())
    return sorted((_measure(path) for path in paths), key=lambda entry: entry.name)


def _measure(folder: Path) -> CacheEntry:
    stats = [file.stat() for file in folder.rglob("*") if file.is_file() and not file.is_symlink()]
    newest = max((stat.st_mtime for stat in stats), default=folder.stat().st_mtime)
    return CacheEntry(folder.name, sum(stat.st_size for stat in stats), newest)


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"


@app.command("list")
def list_entries(as_json: Json = False) -> None:
    """List the cache entries with sizes and ages."""
    folder = cache_root().absolute()
    entries = read_entries(folder)
    if as_json:
        typer.echo(json.dumps({"folder": str(folder), "items": [asdict(entry) for entry in entries]}, indent=1))
        return
    if not entries:
        typer.echo(f"{folder}: empty")
        return
    table = Table(title=f"{folder}: {_megabytes(sum(entry.bytes for entry in entries))}", title_justify="left")
    for heading in ("name", "size", "age"):
        table.add_column(heading, justify="left" if heading == "name" else "right", overflow="fold")
    for entry in entries:
        table.add_row(entry.name, _megabytes(entry.bytes), f"{max(0.0, time.time() - entry.modified) / 86400:.1f} days")
    Console().print(table)


@app.command("clean")
def clean(
    older_than: Annotated[
        float, typer.Option("--older-than", min=0, metavar="DAYS", help="Only entries not written for this many days.")
    ] = 0,
) -> None:
    """Delete cache entries; the next run prepares its data again."""
    folder = cache_root().absolute()
    old = [entry for entry in read_entries(folder) if time.time() - entry.modified >= older_than * 86400]
    for entry in old:
        shutil.rmtree(folder / entry.name)
    typer.echo(f"{folder}: removed {len(old)} items, {_megabytes(sum(entry.bytes for entry in old))}")
