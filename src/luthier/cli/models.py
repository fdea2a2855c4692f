"""`luthier models`: list the catalogue of base models, or show one model's card."""

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
from luthier.catalog.locate import Location, locate, suggest_model
from luthier.catalog.selection import Selection
from luthier.cli.options import Json
from luthier.errors import ModelNotFoundError, UserError

WIDTH = 100  # columns of the list; a narrower terminal wraps the licences
LETTERS = {kind: kind[0] for kind in KINDS}


def models(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Any name of a model, to show its card.")] = None,
    match: Annotated[
        str | None, typer.Option("--match", metavar="TEXT", help="Only models with TEXT in a name.")
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option("--kind", "-k", metavar="KIND", help=f"Only models for this kind of data: {', '.join(KINDS)}."),
    ] = None,
    architecture: Annotated[
        str | None,
        typer.Option(
            "--architecture", metavar="NAME", help="Only this architecture, such as llama or LlamaForCausalLM."
        ),
    ] = None,
    licence: Annotated[
        str | None, typer.Option("--licence", metavar="TEXT", help="Only models with TEXT in the name of the licence.")
    ] = None,
    gated: Annotated[
        bool | None, typer.Option("--gated/--open", help="Only models whose licence must, or need not, be accepted.")
    ] = None,
    max_parameters: Annotated[
        str | None,
        typer.Option("--max-parameters", metavar="SIZE", help="Only models up to this size, such as 8B or 500M."),
    ] = None,
    autopilot: Annotated[bool, typer.Option("--autopilot", help="Only models that Autopilot tunes.")] = False,
    at_hand: Annotated[bool, typer.Option("--at-hand", help="Only models whose files are on this machine.")] = False,
    as_json: Json = False,
) -> None:
    """List the base models in the catalogue, or show one model's card.

    Other models work too: --model accepts a folder in Hugging Face layout or ORG/NAME on the Hub.
    """
    selection = Selection(
        text=match or "", kind=kind, architecture=architecture, licence=licence, gated=gated,
        max_parameters=max_parameters, autopilot=autopilot,
    )  # fmt: skip
    if name is not None:
        if at_hand or selection != Selection():
            raise UserError(f"{name}: a model's card takes no filters; remove NAME or the filters")
        location = _locate_known(name)
        if as_json:
            typer.echo(json.dumps(card(location), indent=1))
        else:
            Console(highlight=False).print(_card_table(location))
        return
    located = [locate(entry.id) for entry in entries() if entry in selection]
    shown = [location for location in located if location.folder or not at_hand]
    if as_json:
        typer.echo(json.dumps([card(location) for location in shown], indent=1))
    elif not shown:
        typer.echo("no model in the catalogue matches; remove a filter")
    else:
        console = Console(highlight=False)
        console.width = console.width if console.is_terminal else max(console.width, WIDTH)
        console.print(_list_table(shown))


def card(location: Location) -> dict[str, Any]:
    """An entry as JSON data, with the local folder of its files (`at`, null when there is none)."""
    assert location.entry is not None
    return {**asdict(location.entry), "at": str(location.folder) if location.folder else None}


def size(parameters: int) -> str:
    """Format a parameter count: 135M, 2.8B."""
    for unit, scale in (("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if parameters >= 0.9995 * scale:
            return f"{parameters / scale:.3g}{unit}"
    return str(parameters)


def _locate_known(name: str) -> Location:
    """Locate a model by any of its names, a folder, or a downloaded repository; ModelNotFoundError otherwise."""
    entry = find(name)
    location = locate(entry.id if entry else name)
    if location.entry is None:
        raise ModelNotFoundError(
            f"model {name!r} is neither in the catalogue nor on this machine{suggest_model(name)} (searched "
            f"{'; '.join(location.searched)}); `luthier tune --model` downloads it from the Hub"
        )
    return location


def _list_table(shown: list[Location]) -> Table:
    """One line per entry, grouped by architecture."""
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
            table.add_row(*_list_row(location, entry))
    return table


def _list_row(location: Location, entry: Entry) -> Iterator[str]:
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
        f"\n{len(shown)} models. kinds: {letters}; none: cannot be tuned.\n* licence must be accepted "
        "(--accept-eula). Autopilot: maximum rows. Card: luthier models NAME"
    )


def _card_table(location: Location) -> Table:
    entry = location.entry
    assert entry is not None
    table = Table(title=escape(entry.name), title_justify="left", show_header=False, box=None, pad_edge=False)
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for heading, text in _card_rows(location, entry):
        if text:
            table.add_row(heading, escape(text))
    return table


def _card_rows(location: Location, entry: Entry) -> Iterator[tuple[str, str]]:
    """The rows of a card in order: heading and text; the text is empty when it does not apply."""
    licence, limits = entry.licence, entry.autopilot
    acceptance = "must be accepted with --accept-eula" if licence.eula else "needs no acceptance"
    yield "names", ", ".join(entry.names)
    yield "description", entry.description.strip()
    yield "source", entry.source + (f" at {entry.revision}" if entry.revision else "")
    yield "at", str(location.folder or _MISSING)
    yield "licence", f"{licence.name} ({acceptance})" if licence.url else f"{licence.name}: see the model's source"
    yield "licence text", licence.url
    yield "architecture", entry.architecture
    yield "parameters", f"{size(entry.parameters)} ({entry.parameters:,})" if entry.parameters else "unknown"
    yield "context length", f"{entry.context_length:,}" if entry.context_length else "no limit stated"
    yield "tuned on", ", ".join(entry.kinds) or "cannot be tuned"
    yield "Autopilot", f"{limits.name}: at most {limits.rows:,} rows of {limits.tokens:,} tokens" if limits else ""
    yield "LoRA targets", ", ".join(entry.lora_targets)
    yield "attention", ", ".join((*entry.attention.kernels, *(["packs rows"] if entry.attention.packing else [])))
    yield "default template", _pairs({name: repr(text) for name, text in (entry.default_template or {}).items()})
    yield "chat template", entry.chat_template or ""
    yield "defaults", _pairs(entry.default_hyperparameters)
    yield "ranges", "; ".join(f"{name}: {_range(**bounds)}" for name, bounds in entry.hyperparameter_ranges.items())
    yield "shape", _pairs(entry.shape)
    yield "checked", ", ".join(entry.verified) or "not yet against the publisher's files"


_MISSING = "not on this machine; downloaded from the Hub at first use, or read from $LUTHIER_MODELS"


def _pairs(mapping: Any) -> str:
    return ", ".join(f"{name}={value}" for name, value in mapping.items())


def _range(minimum: float | None = None, maximum: float | None = None) -> str:
    bounds: Iterable[tuple[str, float | None]] = (("at least", minimum), ("at most", maximum))
    return ", ".join(f"{word} {bound:g}" for word, bound in bounds if bound is not None)
