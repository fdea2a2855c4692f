"""A catalogue entry: one base model, read from one YAML file.

The files are those of `entries/` and of the folder that LUTHIER_ENTRIES names. A file that `extends` a family
(`families/*.yaml`: what an architecture fixes) or another entry holds only what differs from it.
"""

from __future__ import annotations

import functools
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from luthier.catalog.hyperparameters import Hyperparameters, parse
from luthier.errors import EulaError, SettingError, UserError, did_you_mean

KINDS = ("instruction", "autopilot", "chat", "domain")
KERNELS = ("eager", "sdpa", "flash")
FACTS = ("architecture", "parameters", "context_length", "licence", "lora_targets", "autopilot",
         "default_hyperparameters")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Licence:
    """A licence's name, the address of its text, and whether it must be accepted before the weights are used."""

    name: str
    url: str = ""
    eula: bool = False


@dataclass(frozen=True, slots=True)
class Autopilot:
    """The BaseModelName of CreateAutoMLJobV2, with the rows and the tokens of a row that Autopilot takes at most."""

    name: str
    rows: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Attention:
    """What the architecture's attention can do in transformers.

    `kernels` that it declares; `packing`: rows laid side by side never see each other.
    """

    kernels: tuple[str, ...] = ()
    packing: bool = False


@dataclass(frozen=True, slots=True)
class Entry:
    """What Luthier knows of a base model before it sees its weights.

    `id` is the plain name users type. `source` is the Hugging Face repository, ``embedded`` for weights that come with
    Luthier, or the id of the entry whose weights these are. `parameters` counts tied weights once; 0 when not known.
    `shape` is the model's config, enough to build it. `kinds` it may be tuned for; none: `description` says what is
    needed. `default_template` and `chat_template` stand in where the rows and the repository bring none.
    `hyperparameter_ranges` maps a name to minimum and maximum, within those of the table. `verified` lists the facts
    that were checked against the publisher's own files or AWS's; the others are as published, from memory.
    """

    id: str
    name: str
    source: str
    architecture: str
    parameters: int
    context_length: int
    licence: Licence
    kinds: tuple[str, ...]
    shape: Mapping[str, Any] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    revision: str | None = None
    description: str = ""
    default_template: Mapping[str, str] | None = None
    chat_template: str | None = None
    lora_targets: tuple[str, ...] = ()
    attention: Attention = Attention()
    default_hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    hyperparameter_ranges: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    autopilot: Autopilot | None = None
    verified: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that finds this entry, each once whatever its case. Borrowed weights lend no name."""
        repository = (self.source,) if "/" in self.source else ()
        autopilot = (self.autopilot.name,) if self.autopilot else ()
        unique: dict[str, str] = {}
        for name in (self.id, *repository, *self.aliases, *autopilot, self.name):
            unique.setdefault(name.lower(), name)
        return tuple(unique.values())

    @property
    def is_tunable(self) -> bool:
        """Whether it may be tuned for anything."""
        return bool(self.kinds)


def entries(environment: Mapping[str, str] = os.environ) -> list[Entry]:
    """All entries, by id. UserError when LUTHIER_ENTRIES holds a faulty one, or one with a name that is taken."""
    return list(_library(environment.get("LUTHIER_ENTRIES", "")).all)


def find(name: str, environment: Mapping[str, str] = os.environ) -> Entry | None:
    """The entry of any of its names (JumpStart id, Autopilot name, Hub repository, plain name), in any case."""
    return _library(environment.get("LUTHIER_ENTRIES", "")).by_name.get(name.lower())


def suggest(name: str, environment: Mapping[str, str] = os.environ) -> str:
    """Return ``; did you mean 'x'?`` for the closest name of any entry, or an empty string."""
    return did_you_mean(name, (known for entry in entries(environment) for known in entry.names))


def check_tunable(entry: Entry | None) -> None:
    """UserError, saying what is needed, for a model that is known and cannot be tuned."""
    if entry and not entry.is_tunable:
        raise UserError(f"{entry.id} cannot be used here. {entry.description}")


def check_kind(entry: Entry | None, kind: str) -> None:
    """UserError for data of a kind that the model cannot be tuned on."""
    if entry and kind not in entry.kinds:
        raise UserError(f"{entry.id} cannot be tuned on {kind} data; it takes {', '.join(entry.kinds)}")


def licence_record(entry: Entry | None, accepted: bool, by: str, fix: str) -> dict[str, str] | None:
    """Who accepted the licence of a gated model, and when; None for a model that requires no acceptance.

    EulaError, with `fix` saying how to accept it, when it must be accepted and was not.
    """
    if entry is None or not entry.licence.eula:
        return None
    if not accepted:
        raise EulaError(
            f"{entry.id} is licensed under {entry.licence.name}, which you must accept first: read "
            f"{entry.licence.url}, then {fix}"
        )
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return {"accepted": when, "licence": entry.licence.name, "url": entry.licence.url, "by": by}


def parse_for(entry: Entry | None, raw: Mapping[str, Any]) -> Hyperparameters:
    """Type and check `raw` hyperparameters: the entry's defaults under them, within its ranges. Raises SettingError."""
    return parse(raw, entry.default_hyperparameters, entry.hyperparameter_ranges) if entry else parse(raw)


@dataclass(frozen=True, slots=True)
class _Library:
    all: tuple[Entry, ...]
    by_name: Mapping[str, Entry]


@functools.cache
def _library(folder: str) -> _Library:
    families = {file.removesuffix(".yaml"): _read_yaml(file, text) for file, text in _packaged("families")}
    files = [(file, _read_yaml(file, text)) for file, text in (*_packaged("entries"), *_own(folder))]
    parents = {str(stored.get("id")): stored for _, stored in files} | families
    found = [_entry(file, _inherit(file, stored, parents)) for file, stored in files]
    by_name: dict[str, Entry] = {}
    for entry in found:
        for name in entry.names:
            if by_name.setdefault(name.lower(), entry) is not entry:
                raise UserError(f"catalogue: {name!r} names both {by_name[name.lower()].id} and {entry.id}; change one")
    return _Library(tuple(sorted(found, key=lambda entry: entry.id)), by_name)


def _packaged(name: str) -> list[tuple[str, str]]:
    folder = resources.files("luthier.catalog") / name
    return [(file.name, file.read_text("utf-8")) for file in folder.iterdir() if file.name.endswith(".yaml")]


def _own(folder: str) -> list[tuple[str, str]]:
    if not folder:
        return []
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise UserError(f"LUTHIER_ENTRIES={folder}: no such folder; expected one that holds *.yaml entries")
    return [(str(file), file.read_text("utf-8")) for file in sorted(path.glob("*.yaml"))]


def read_entry(file: str, text: str) -> Entry:
    """Read one YAML entry that extends nothing.

    UserError names the file and the field that is unknown, missing or of a wrong type.
    """
    return _entry(file, _read_yaml(file, text))


def _read_yaml(file: str, text: str) -> dict[str, Any]:
    try:
        stored = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506 - a safe one, in C or not
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{file}:{mark.line + 1}" if mark else file
        raise UserError(f"{where}: not YAML: {getattr(error, 'problem', None) or 'unreadable'}") from None
    if not isinstance(stored, dict):
        raise UserError(f"{file}: expected a mapping of fields")
    return stored


def _inherit(file: str, stored: dict[str, Any], parents: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """The fields of `stored` over those of the chain of `parents` that it extends."""
    chain = [stored]
    while (name := chain[-1].get("extends")) is not None:
        parent = parents.get(str(name))
        if parent is None:
            raise UserError(f"{file}: extends: unknown family or model {name!r}{did_you_mean(str(name), parents)}")
        if any(parent is link for link in chain):
            raise UserError(f"{file}: extends: {name!r} extends itself")
        chain.append(parent)
    resolved: dict[str, Any] = {}
    for link in reversed(chain):
        for field_name, value in link.items():
            if link is not stored and field_name in _NOT_INHERITED:
                continue
            inherited = resolved.get(field_name)
            if field_name in _MERGED and isinstance(inherited, dict) and isinstance(value, dict):
                value = {**inherited, **value}
            resolved[field_name] = value
    resolved.pop("extends", None)
    return resolved


def _entry(file: str, stored: dict[str, Any]) -> Entry:
    problems = _faults("", stored, _FIELDS, _REQUIRED)
    if not problems:
        problems = [f"{name}: {fault}" for name, wrong, fault in _RULES if wrong(stored)]
    if problems:
        raise UserError(f"{file}: " + "; ".join(problems))
    groups = {name: build(**_tuples(stored[name])) for name, build in _GROUPS.items() if name in stored}
    entry = Entry(**(_tuples(stored) | groups))
    try:
        parse_for(entry, {})
    except SettingError as error:
        raise UserError(f"{file}: {error}") from None
    return entry


def _tuples(stored: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in stored.items()}


def _faults(place: str, stored: Mapping[Any, Any], known: Mapping[str, Any], required: tuple[str, ...]) -> list[str]:
    """Unknown, missing and wrongly typed fields of a mapping, and of the mappings inside it."""
    problems = [
        f"unknown field {f'{place}{name}'!r}{did_you_mean(str(name), known)}" for name in stored if name not in known
    ]
    problems += [f"missing field {f'{place}{name}'!r}" for name in required if name not in stored]
    for name, value in stored.items():
        wanted = known.get(name)
        if isinstance(wanted, tuple) and isinstance(value, dict):
            problems += _faults(f"{place}{name}.", value, *wanted)
        elif wanted is not None:
            kind = dict if isinstance(wanted, tuple) else wanted
            listed = kind is not list or (type(value) is list and all(type(item) is str for item in value))
            if type(value) is not kind or not listed:
                problems.append(f"{place}{name}: expected {_WORDS[kind]}")
    return problems


_WORDS = {int: "a whole number", bool: "true or false", list: "a list of words", dict: "a mapping", str: "text"}
_GROUPS: dict[str, Any] = {"licence": Licence, "autopilot": Autopilot, "attention": Attention}
# What YAML must hold in a field: a type, or the fields and the required fields of a mapping.
_FIELDS: dict[str, Any] = {
    **dict.fromkeys(("id", "name", "source", "architecture", "revision", "description", "chat_template"), str),
    **dict.fromkeys(("parameters", "context_length"), int),
    **dict.fromkeys(("kinds", "aliases", "lora_targets", "verified"), list),
    **dict.fromkeys(("shape", "default_hyperparameters", "hyperparameter_ranges"), dict),
    "default_template": ({"prompt": str, "completion": str}, ("prompt", "completion")),
    "licence": ({"name": str, "url": str, "eula": bool}, ("name",)),
    "autopilot": ({"name": str, "rows": int, "tokens": int}, ("name", "rows", "tokens")),
    "attention": ({"kernels": list, "packing": bool}, ("kernels", "packing")),
}
_NOT_INHERITED = ("id", "name", "source", "revision", "aliases", "description", "autopilot", "verified")
_MERGED = ("shape", "default_hyperparameters", "hyperparameter_ranges")  # key by key; other fields replace
_REQUIRED = ("id", "name", "source", "architecture", "parameters", "context_length", "licence", "kinds")
_SOURCE = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
# What must hold beside the types: the field at fault, what is wrong with the stored entry, and what was expected.
_RULES: tuple[tuple[str, Any, str], ...] = (
    ("kinds", lambda stored: set(stored["kinds"]) - set(KINDS), f"expected some of {', '.join(KINDS)}"),
    ("description", lambda stored: not stored["kinds"] and not stored.get("description"),
     "expected what is needed to tune it, as kinds is empty"),
    ("attention.kernels", lambda stored: set(stored.get("attention", {}).get("kernels", ())) - set(KERNELS),
     f"expected some of {', '.join(KERNELS)}"),
    ("verified", lambda stored: set(stored.get("verified", ())) - set(FACTS), f"expected some of {', '.join(FACTS)}"),
    ("source", lambda stored: not _SOURCE.fullmatch(stored["source"]), "expected ORG/NAME of the Hub"),
    ("licence.url", lambda stored: stored["licence"].get("eula") and not stored["licence"].get("url"),
     "expected the address of the text that must be accepted"),
    ("hyperparameter_ranges", lambda stored: not all(map(_is_range, stored.get("hyperparameter_ranges", {}).values())),
     "expected {NAME: {minimum: NUMBER, maximum: NUMBER}}"),
)  # fmt: skip


def _is_range(stored: Any) -> bool:
    if not isinstance(stored, dict) or not stored or stored.keys() - {"minimum", "maximum"}:
        return False
    return all(type(value) in (int, float) for value in stored.values())
