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
    """A licence: its name, the URL of its text, and whether the user must accept it first (`eula`)."""

    name: str
    url: str = ""
    eula: bool = False


@dataclass(frozen=True, slots=True)
class Autopilot:
    """The BaseModelName of CreateAutoMLJobV2, with Autopilot's limits: rows of a data set, tokens of a row."""

    name: str
    rows: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Attention:
    """Attention of an architecture in transformers.

    `kernels`: implementations that it supports. `packing`: attention never crosses the boundary of packed rows.
    """

    kernels: tuple[str, ...] = ()
    packing: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A base model, described without its weights.

    `id` is the name users type. `source` is the Hugging Face repository, ``embedded`` for weights packaged with
    Luthier, or the id of the entry with the same weights. `parameters` counts tied weights once; 0 when unknown.
    `shape` is the model's config, enough to build it. `kinds` are the kinds of data it can be tuned on; if empty,
    `description` says why. `default_template` and `chat_template` are used where rows and repository have none.
    `hyperparameter_ranges` maps a name to minimum and maximum, within those of the table. `verified` lists the fields
    checked against the publisher's or AWS's files; the others are as published.
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
        """Every name of this entry, each once ignoring case; the entry that `source` may name is not among them."""
        repository = (self.source,) if "/" in self.source else ()
        autopilot = (self.autopilot.name,) if self.autopilot else ()
        unique: dict[str, str] = {}
        for name in (self.id, *repository, *self.aliases, *autopilot, self.name):
            unique.setdefault(name.lower(), name)
        return tuple(unique.values())

    @property
    def is_tunable(self) -> bool:
        """Whether it can be tuned on any kind of data."""
        return bool(self.kinds)


def entries(environment: Mapping[str, str] = os.environ) -> list[Entry]:
    """Return all entries, sorted by id; UserError for an invalid entry in LUTHIER_ENTRIES, or a name used twice."""
    return list(_load(environment.get("LUTHIER_ENTRIES", "")).all)


def find(name: str, environment: Mapping[str, str] = os.environ) -> Entry | None:
    """Return the entry with this id, title, JumpStart id, Autopilot name or Hub repository, ignoring case."""
    return _load(environment.get("LUTHIER_ENTRIES", "")).by_name.get(name.lower())


def check_tunable(entry: Entry | None) -> None:
    """Raise UserError for an entry that cannot be tuned, with the reason."""
    if entry and not entry.is_tunable:
        raise UserError(f"{entry.id} cannot be tuned. {entry.description}")


def check_kind(entry: Entry | None, kind: str) -> None:
    """Raise UserError for a kind of data that the model cannot be tuned on."""
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


def reads_pairs(entry: Entry | None) -> bool:
    """Whether the model is an encoder-decoder (T5), which reads a prompt and writes a completion."""
    return entry is not None and entry.shape.get("model_type") in ("t5", "mt5", "bart", "mbart", "longt5")


def parse_for(entry: Entry | None, raw: Mapping[str, Any]) -> Hyperparameters:
    """Parse `raw` hyperparameters over the entry's defaults and within its ranges; raises SettingError."""
    return parse(raw, entry.default_hyperparameters, entry.hyperparameter_ranges) if entry else parse(raw)


@dataclass(frozen=True, slots=True)
class _Catalogue:
    all: tuple[Entry, ...]
    by_name: Mapping[str, Entry]


@functools.cache
def _load(folder: str) -> _Catalogue:
    families = {file.removesuffix(".yaml"): _read_yaml(file, text) for file, text in _packaged("families")}
    files = [(file, _read_yaml(file, text)) for file, text in (*_packaged("entries"), *_user_files(folder))]
    parents = {str(stored.get("id")): stored for _, stored in files} | families
    loaded = [_entry(file, _inherit(file, stored, parents)) for file, stored in files]
    by_name: dict[str, Entry] = {}
    for entry in loaded:
        for name in entry.names:
            if by_name.setdefault(name.lower(), entry) is not entry:
                raise UserError(f"catalogue: {name!r} names both {by_name[name.lower()].id} and {entry.id}; rename one")
    return _Catalogue(tuple(sorted(loaded, key=lambda entry: entry.id)), by_name)


def _packaged(name: str) -> list[tuple[str, str]]:
    folder = resources.files("luthier.catalog") / name
    return [(file.name, file.read_text("utf-8")) for file in folder.iterdir() if file.name.endswith(".yaml")]


def _user_files(folder: str) -> list[tuple[str, str]]:
    if not folder:
        return []
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise UserError(f"LUTHIER_ENTRIES={folder}: no such folder; expected a folder with *.yaml entries")
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
    problems = _type_problems("", stored, _FIELDS, _REQUIRED)
    if not problems:
        problems = [f"{name}: {fault}" for name, is_broken, fault in _RULES if is_broken(stored)]
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


def _type_problems(
    place: str, stored: Mapping[Any, Any], known: Mapping[str, Any], required: tuple[str, ...]
) -> list[str]:
    """Unknown, missing and wrongly typed fields of a mapping, and of the mappings inside it."""
    problems = [
        f"unknown field {f'{place}{name}'!r}{did_you_mean(str(name), known)}" for name in stored if name not in known
    ]
    problems += [f"missing field {f'{place}{name}'!r}" for name in required if name not in stored]
    for name, value in stored.items():
        expected = known.get(name)
        if isinstance(expected, tuple) and isinstance(value, dict):
            problems += _type_problems(f"{place}{name}.", value, *expected)
        elif expected is not None:
            kind = dict if isinstance(expected, tuple) else expected
            is_valid = type(value) is kind and (kind is not list or all(type(item) is str for item in value))
            if not is_valid:
                problems.append(f"{place}{name}: expected {_WORDS[kind]}")
    return problems


_WORDS = {int: "a whole number", bool: "true or false", list: "a list of words", dict: "a mapping", str: "text"}
_GROUPS: dict[str, Any] = {"licence": Licence, "autopilot": Autopilot, "attention": Attention}
# The type of each field, or the fields and the required fields of a mapping.
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
_NAME = r"[A-Za-z0-9][\w.-]{0,95}"
REPOSITORY = re.compile(rf"{_NAME}/{_NAME}", re.ASCII)  # of the Hugging Face Hub
_SOURCE = re.compile(rf"{_NAME}(/{_NAME})?", re.ASCII)
# Rules beside the types: (field, whether the stored entry breaks the rule, what is expected).
_RULES: tuple[tuple[str, Any, str], ...] = (
    ("kinds", lambda stored: set(stored["kinds"]) - set(KINDS), f"expected some of {', '.join(KINDS)}"),
    ("description", lambda stored: not stored["kinds"] and not stored.get("description"),
     "expected the reason why it cannot be tuned, as kinds is empty"),
    ("attention.kernels", lambda stored: set(stored.get("attention", {}).get("kernels", ())) - set(KERNELS),
     f"expected some of {', '.join(KERNELS)}"),
    ("verified", lambda stored: set(stored.get("verified", ())) - set(FACTS), f"expected some of {', '.join(FACTS)}"),
    ("source", lambda stored: not _SOURCE.fullmatch(stored["source"]), "expected ORG/NAME of the Hub"),
    ("licence.url", lambda stored: stored["licence"].get("eula") and not stored["licence"].get("url"),
     "expected the URL of the text that must be accepted"),
    ("hyperparameter_ranges", lambda stored: not all(map(_is_range, stored.get("hyperparameter_ranges", {}).values())),
     "expected {NAME: {minimum: NUMBER, maximum: NUMBER}}"),
)  # fmt: skip


def _is_range(stored: Any) -> bool:
    if not isinstance(stored, dict) or not stored or stored.keys() - {"minimum", "maximum"}:
        return False
    return all(type(value) in (int, float) for value in stored.values())
