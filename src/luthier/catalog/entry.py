"""A catalogue entry: one base model, read from one YAML file of `entries/`."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from importlib import resources
from typing import Any

import yaml

from luthier.errors import LuthierError

KINDS = ("instruction", "autopilot", "chat", "domain")
# What YAML must hold in a field; text in those that are not here.
_TYPES: dict[str, type] = {
    **dict.fromkeys(("parameters", "context_length"), int),
    **dict.fromkeys(("eula_required", "clean_packing"), bool),
    **dict.fromkeys(("kinds", "aliases", "lora_targets", "verified"), list),
    **dict.fromkeys(("default_template", "default_hyperparameters"), dict),
}
_WORDS = {int: "a whole number", bool: "true or false", list: "a list", dict: "a mapping", str: "text"}


@dataclass(frozen=True, slots=True)
class Entry:
    """What Luthier knows of a base model before it sees its weights.

    `id` is the plain name users type; `source` the Hugging Face repository, or ``embedded`` for weights that come
    with Luthier. `clean_packing` says that rows laid side by side never see each other in this architecture.
    `verified` lists the facts that were checked against the weights or the publisher's own files; others are as
    published.
    """

    id: str
    name: str
    source: str
    architecture: str
    parameters: int
    context_length: int
    licence: str
    kinds: tuple[str, ...]
    aliases: tuple[str, ...] = ()
    revision: str | None = None
    licence_url: str | None = None
    eula_required: bool = False
    default_template: Mapping[str, str] | None = None
    lora_targets: tuple[str, ...] = ()
    clean_packing: bool = False
    default_hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    description: str = ""
    verified: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that finds this entry."""
        return (self.id, self.source, *self.aliases) if self.source != "embedded" else (self.id, *self.aliases)


def entries() -> list[Entry]:
    """All entries, by id."""
    return list(_all_entries())


def find(name: str) -> Entry | None:
    """The entry of any of its names (JumpStart id, Autopilot name, Hub repository, plain name), in any case."""
    return _by_name().get(name.lower())


@functools.cache
def _all_entries() -> tuple[Entry, ...]:
    folder = resources.files("luthier.catalog") / "entries"
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".yaml")), key=lambda file: file.name)
    return tuple(read_entry(file.name, file.read_text("utf-8")) for file in files)


@functools.cache
def _by_name() -> dict[str, Entry]:
    found: dict[str, Entry] = {}
    for entry in _all_entries():
        for name in entry.names:
            if found.setdefault(name.lower(), entry) is not entry:
                raise LuthierError(f"catalogue: {name!r} names both {found[name.lower()].id} and {entry.id}")
    return found


def read_entry(file: str, text: str) -> Entry:
    """Read one YAML entry; LuthierError names the file and the field that is unknown, missing or of a wrong type."""
    stored = yaml.safe_load(text)
    if not isinstance(stored, dict):
        raise LuthierError(f"{file}: expected a mapping of fields")
    known = {item.name for item in fields(Entry)}
    required = ("id", "name", "source", "architecture", "parameters", "context_length", "licence", "kinds")
    problems = [f"unknown field {name!r}" for name in stored.keys() - known]
    problems += [f"missing field {name!r}" for name in required if name not in stored]
    wanted = {name: _TYPES.get(name, str) for name in stored if name in known}
    wrong = [name for name, kind in wanted.items() if type(stored[name]) is not kind]
    problems += [f"{name}: expected {_WORDS[wanted[name]]}" for name in wrong]
    if "kinds" not in wrong:
        problems += [f"unknown kind {kind!r}" for kind in stored.get("kinds", []) if kind not in KINDS]
    if problems:
        raise LuthierError(f"{file}: " + "; ".join(problems))
    lists = {name: tuple(value) for name, value in stored.items() if isinstance(value, list)}
    return Entry(**(stored | lists))
