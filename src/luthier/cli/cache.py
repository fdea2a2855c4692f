"""`luthier cache`: the prepared data kept between runs, by size and age, and its removal.

Knows the cache as folders only; what is in them is `data/cache.py`'s. Everything there can be made again.
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

_HASH = re.compile(r"[0-9a-f]{64}")  # data/cache.py names its folders so

app = typer.Typer(help="List or clean the prepared data kept between runs.", no_args_is_help=True)


@dataclass(frozen=True, slots=True)
class Item:
    """One thing in the cache: its name, bytes, and when it was last written (seconds since the epoch)."""

    name: str
    bytes: int
    modified: float


def items(folder: Path) -> list[Item]:
    """The cache's own folders, by name; whatever else lies there is not the cache's and is left alone."""
    if not folder.is_dir():
        return []
    own = (path for path in folder.iterdir() if _HASH.search(path.name) and path.is_dir() and not path.is_symlink())
    return sorted((_measure(path) for path in own), key=lambda item: item.name)


def _measure(folder: Path) -> Item:
    stats = [file.stat() for file in folder.rglob("*") if file.is_file() and not file.is_symlink()]
    newest = max((stat.st_mtime for stat in stats), default=folder.stat().st_mtime)
    return Item(folder.name, sum(stat.st_size for stat in stats), newest)


def megabytes(count: int) -> str:
    """Bytes as people read them: 12.3 MB."""
    return f"{count / 1e6:,.1f} MB"


@app.command("list")
def list_items(as_json: Json = False) -> None:
    """Show what is kept, with sizes and ages."""
    folder = cache_root().absolute()
    kept = items(folder)
    if as_json:
        typer.echo(json.dumps({"folder": str(folder), "items": [asdict(item) for item in kept]}, indent=1))
        return
    if not kept:
        typer.echo(f"{folder}: empty")
        return
    table = Table(title=f"{folder}: {megabytes(sum(item.bytes for item in kept))}", title_justify="left")
    for heading in ("name", "size", "age"):
        table.add_column(heading, justify="left" if heading == "name" else "right", overflow="fold")
    for item in kept:
        table.add_row(item.name, megabytes(item.bytes), f"{max(0.0, time.time() - item.modified) / 86400:.1f} days")
    Console().print(table)


@app.command("clean")
def clean(
    older_than: Annotated[
        float, typer.Option("--older-than", min=0, metavar="DAYS", help="Only what was not written for so long.")
    ] = 0,
) -> None:
    """Remove what is kept; the next run prepares its data again."""
    folder = cache_root().absolute()
    old = [item for item in items(folder) if time.time() - item.modified >= older_than * 86400]
    for item in old:
        shutil.rmtree(folder / item.name)
    typer.echo(f"{folder}: removed {len(old)} items, {megabytes(sum(item.bytes for item in old))}")
