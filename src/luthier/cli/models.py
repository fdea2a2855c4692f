"""`luthier models`: the catalogue of base models, and the card of one of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import groupby
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from luthier.catalog.entry import KINDS, Entry, entries, find
from luthier.catalog.locate import Location, locate
from luthier.catalog.selection import Selection
from luthier.cli.options import Json
from luthier.errors import ModelNotFoundError, UserError

WIDTH = 100  # columns that the list is laid out for; a narrower terminal wraps its licences
LETTERS = {kind: kind[0] for kind in KINDS}


def models(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Any name of a model, for its card.")] = None,
    match: Annotated[
        str | None, typer.Option("--match", metavar="TEXT", help="Only those with TEXT in a name.")
    ] = None,
    kind: Annotated[
        str | None, typer.Option("--kind", "-k", metavar="KIND", help=f"Only those for {', '.join(KINDS)} data.")
    ] = None,
    architecture: Annotated[
        str | None, typer.Option("--architecture", metavar="NAME", help="Such as llama, or LlamaForCausalLM.")
    ] = None,
    licence: Annotated[
        str | None, typer.Option("--licence", metavar="TEXT", help="Only those with TEXT in the licence's name.")
    ] = None,
    gated: Annotated[
        bool | None, typer.Option("--gated/--open", help="Only those whose licence must, or need not, be accepted.")
    ] = None,
    max_parameters: Annotated[
        str | None, typer.Option("--max-parameters", metavar="SIZE", help="Such as 8B or 500M; rounded as written.")
    ] = None,
    autopilot: Annotated[bool, typer.Option("--autopilot", help="Only those that Autopilot tunes.")] = False,
    at_hand: Annotated[bool, typer.Option("--at-hand", help="Only those whose files are on this machine.")] = False,
    as_json: Json = False,
) -> None:
    """List the base models that Luthier knows, or show the card of one.

    Others work too: --model takes a folder in Hugging Face layout or ORG/NAME of the Hub.
    """
    wanted = Selection(match or "", kind, architecture, licence, gated, max_parameters, autopilot)
    if name is not None:
        if at_hand or wanted != Selection():
            raise UserError(f"{name}: the card of one model takes no filters; leave NAME or the filters out")
        location = _known(name)
        if as_json:
            typer.echo(json.dumps(card(location), indent=1))
        else:
            Console(highlight=False).print(_card_table(location))
        return
    located = [locate(entry.id) for entry in entries() if entry in wanted]
    shown = [location for location in located if location.folder or not at_hand]
    if as_json:
        typer.echo(json.dumps([card(location) for location in shown], indent=1))
    elif not shown:
        typer.echo("no model of the catalogue fits; leave a filter out")
    else:
        console = Console(highlight=False)
        console.width = console.width if console.is_terminal else max(console.width, WIDTH)
        console.print(_list(shown))


def card(location: Location) -> dict[str, Any]:
    """An entry as plain data, with where its files are on this machine (`at`, null when not at hand)."""
    assert location.entry is not None
    return {**asdict(location.entry), "at": str(location.folder) if location.folder else None}


def size(parameters: int) -> str:
    """A parameter count as people say it: 135M, 2.8B."""
    for unit, scale in (("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if parameters >= 0.9995 * scale:
            return f"{parameters / scale:.3g}{unit}"
    return str(parameters)


def _known(name: str) -> Location:
    """The model of any name, of a folder, or of a repository at hand; ModelNotFoundError for others."""
    entry = find(name)
    location = locate(entry.id if entry else name)
    if location.entry is None:
        raise ModelNotFoundError(
            f"{name} is not in the catalogue and not on this machine (looked in {'; '.join(location.looked)}), so "
            "nothing is known of it; `luthier tune --model` fetches it from the Hub"
        )
    return location


def _list(shown: list[Location]) -> Table:
    """The entries by architecture, one line each."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), caption_justify="left", caption=_legend(shown))
    table.add_column("id", no_wrap=True)
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("context", justify="right", no_wrap=True)
    table.add_column("licence", overflow="fold")
    table.add_column("kinds", no_wrap=True)
    table.add_column("Autopilot", justify="right", no_wrap=True)
    table.add_column("here", no_wrap=True)
    pairs = [(location, location.entry) for location in shown if location.entry]
    pairs.sort(key=lambda pair: (pair[1].architecture, pair[1].parameters, pair[1].id))
    for architecture, group in groupby(pairs, key=lambda pair: pair[1].architecture):
        table.add_row()
        table.add_row(f"[bold]{architecture}[/]")
        for location, entry in group:
            table.add_row(*_line(location, entry))
    return table


def _line(location: Location, entry: Entry) -> Iterator[str]:
    yield f"  {entry.id}"
    yield size(entry.parameters)
    yield f"{entry.context_length:,}"
    yield escape(entry.licence.name.removesuffix(" License")) + (" *" if entry.licence.eula else "")
    yield " ".join(LETTERS[kind] if kind in entry.kinds else "·" for kind in KINDS)
    yield f"{entry.autopilot.rows:,}" if entry.autopilot else ""
    yield "yes" if location.folder else ""


def _legend(shown: list[Location]) -> str:
    letters = ", ".join(f"{letter} {kind}" for kind, letter in LETTERS.items())
    return (
        f"\n{len(shown)} models. kinds: {letters}; none: not tuned here.\n* licence to be accepted "
        "(--accept-eula). Autopilot: most rows it takes. A card: luthier models NAME"
    )


def _card_table(location: Location) -> Table:
    entry = location.entry
    assert entry is not None
    table = Table(title=escape(entry.name), title_justify="left", show_header=False, box=None, pad_edge=False)
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for heading, text in _facts(location, entry):
        if text:
            table.add_row(heading, escape(text))
    return table


def _facts(location: Location, entry: Entry) -> Iterator[tuple[str, str]]:
    """The lines of a card, in order: a heading, and a text that is empty where there is nothing to say."""
    licence, limits = entry.licence, entry.autopilot
    must = "to be accepted by --accept-eula" if licence.eula else "nothing to accept"
    yield "names", ", ".join(entry.names)
    yield "description", entry.description.strip()
    yield "source", entry.source + (f" at {entry.revision}" if entry.revision else "")
    yield "at", str(location.folder or _MISSING)
    yield "licence", f"{licence.name} ({must})" if licence.url else f"{licence.name}: see where the model comes from"
    yield "its text", licence.url
    yield "architecture", entry.architecture
    yield "parameters", f"{size(entry.parameters)} ({entry.parameters:,})" if entry.parameters else "not counted"
    yield "context length", f"{entry.context_length:,}" if entry.context_length else "no limit named"
    yield "tuned on", ", ".join(entry.kinds) or "nothing here"
    yield "Autopilot", f"{limits.name}: at most {limits.rows:,} rows of {limits.tokens:,} tokens" if limits else ""
    yield "LoRA targets", ", ".join(entry.lora_targets)
    yield "attention", ", ".join((*entry.attention.kernels, *(["packs rows"] if entry.clean_packing else [])))
    yield "default template", _pairs({name: repr(text) for name, text in (entry.default_template or {}).items()})
    yield "chat template", entry.chat_template or ""
    yield "defaults", _pairs(entry.default_hyperparameters)
    yield "ranges", "; ".join(f"{name}: {_range(**bounds)}" for name, bounds in entry.hyperparameter_ranges.items())
    yield "shape", _pairs(entry.shape)
    yield "checked", ", ".join(entry.verified) or "nothing yet against the publisher's files"


_MISSING = "not on this machine: fetched from the Hub when first used, or put under $LUTHIER_MODELS"


def _pairs(stored: Any) -> str:
    return ", ".join(f"{name}={value}" for name, value in stored.items())


def _range(minimum: float | None = None, maximum: float | None = None) -> str:
    bounds: Iterable[tuple[str, float | None]] = (("at least", minimum), ("at most", maximum))
    return ", ".join(f"{word} {bound:g}" for word, bound in bounds if bound is not None)
