"""`luthier.models`: the catalogue of base models."""

from __future__ import annotations

from luthier.catalog.entry import Entry, entries
from luthier.catalog.locate import locate
from luthier.catalog.selection import Selection


def models(
    match: str = "",
    *,
    kind: str | None = None,
    architecture: str | None = None,
    licence: str | None = None,
    gated: bool | None = None,
    max_parameters: str | None = None,
    autopilot: bool = False,
    at_hand: bool = False,
) -> list[Entry]:
    """The base models of the catalogue that pass every filter; filters are the options of `luthier models`."""
    selection = Selection(
        text=match, kind=kind, architecture=architecture, licence=licence, gated=gated, max_parameters=max_parameters,
        autopilot=autopilot,
    )  # fmt: skip
    selected = [entry for entry in entries() if entry in selection]
    return [entry for entry in selected if not at_hand or locate(entry.id).folder]
