"""`luthier models`: the catalogue of base models, and the card of one of them."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from luthier.catalog.entry import Entry, entries, find
from luthier.catalog.locate import locate
from luthier.cli.options import Json
from luthier.errors import ModelNotFoundError, did_you_mean


def models(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Any name of a model, for its card.")] = None,
    as_json: Json = False,
) -> None:
    """List the base models that Luthier knows, or show the card of one.

    Others work too: --model takes a folder in Hugging Face layout or ORG/NAME of the Hub.
    """
    if name is None:
        shown = entries()
    else:
        entry = find(name)
        if entry is None:
            known = [known for entry in entries() for known in entry.names]
            raise ModelNotFoundError(f"unknown model {name!r}{did_you_mean(name, known)}; `luthier models` lists them")
        shown = [entry]
    if as_json:
        cards = [card(entry) for entry in shown]
        typer.echo(json.dumps(cards if name is None else cards[0], indent=1))
    elif name is None:
        Console().print(_list(shown))
    else:
        Console().print(_card_table(shown[0]))


def card(entry: Entry) -> dict[str, Any]:
    """An entry as plain data, with where its files are on this machine (`at`, null when not at hand)."""
    folder = locate(entry.id).folder
    return {**asdict(entry), "at": str(folder) if folder else None}


def size(parameters: int) -> str:
    """A parameter count as people say it: 135M, 2.8B."""
    for unit, scale in (("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if parameters >= scale:
            return f"{parameters / scale:.3g}{unit}"
    return str(parameters)


def _list(shown: list[Entry]) -> Table:
    table = Table(title="Base models", title_justify="left")
    for heading, justify in (("id", "left"), ("parameters", "right"), ("context", "right"), ("licence", "left"),
                             ("kinds", "left"), ("at hand", "left")):  # fmt: skip
        table.add_column(heading, justify="right" if justify == "right" else "left", no_wrap=heading == "id")
    for entry in shown:
        licence = entry.licence + (" (to be accepted)" if entry.eula_required else "")
        at_hand = "yes" if locate(entry.id).folder else "no"
        kinds = ", ".join(entry.kinds)
        table.add_row(entry.id, size(entry.parameters), f"{entry.context_length:,}", licence, kinds, at_hand)
    return table


def _card_table(entry: Entry) -> Table:
    table = Table(title=entry.name, title_justify="left", show_header=False)
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for name, value in card(entry).items():
        if value not in (None, "", (), {}):
            table.add_row(name.replace("_", " "), escape(_text(name, value)))
    if not card(entry)["at"]:
        table.add_row("at", "not on this machine: fetched from the Hub when first used, or put under $LUTHIER_MODELS")
    return table


def _text(name: str, value: Any) -> str:
    if name == "parameters":
        return f"{size(value)} ({value:,})"
    if isinstance(value, dict):
        return "\n".join(f"{key} = {inner!r}" if name == "default_template" else f"{key} = {inner}"
                         for key, inner in value.items())  # fmt: skip
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
