"""Hyperparameters as the command line takes them: `--config FILE` and `--set NAME=VALUE`, and their list.

Knows the order of precedence (model's defaults < file < --set); names, types and ranges are the catalogue's.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import typer
import yaml
from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from luthier.catalog.entry import Entry, parse_for
from luthier.catalog.hyperparameters import TABLE, Hyperparameter, Hyperparameters, parse
from luthier.cli.options import Json
from luthier.errors import SettingError, did_you_mean

TYPES = {
    "int": "int", "optional_int": "int or None", "float": "float", "bool": "bool", "choice": "text", "text": "text",
    "fixed": "fixed",
}  # fmt: skip
"""What a row's type is called for people. A fixed one is taken at its default only."""


TITLES = {
    "data": "The data", "run": "The run", "method": "The method", "optimizer": "The optimizer",
    "validation": "Validation, checkpoints and the log", "fixed": "Without a meaning here: taken at the default only",
}  # fmt: skip


class _NoDuplicates(yaml.SafeLoader):
    """YAML in which a name given twice is an error; plain YAML lets the last one win without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                line = key.start_mark.line + 1
                raise SettingError(f"{self.name}:{line}: {key.value!r} is given twice; keep one of them")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_config(path: Path) -> dict[str, Any]:
    """Read a YAML file of `name: value` lines; SettingError names file and line of a fault."""
    try:
        with path.open(encoding="utf-8-sig") as handle:
            content = yaml.load(handle, _NoDuplicates)  # noqa: S506 - a SafeLoader
    except OSError as error:
        raise SettingError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SettingError(f"{path}: expected UTF-8 text") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise SettingError(f"{where}: not YAML: {getattr(error, 'problem', None) or error}") from None
    if content is None:
        return {}
    if not isinstance(content, dict) or any(isinstance(value, dict) for value in content.values()):
        raise SettingError(f"{path}: expected lines of the form `name: value`, without nesting")
    return {str(name): value for name, value in content.items()}


def split_pairs(pairs: Iterable[str]) -> list[tuple[str, str]]:
    """`name=value` texts as pairs; a value may hold further `=`."""
    split = []
    for pair in pairs:
        name, sign, value = pair.partition("=")
        if not sign or not name.strip():
            close = did_you_mean(pair, TABLE) if pair not in TABLE else ""
            raise SettingError(f"--set {pair}: expected NAME=VALUE, such as epoch=3{close}")
        split.append((name.strip(), value))
    return split


def read_settings(config: Path | None, pairs: Iterable[str], entry: Entry | None) -> Hyperparameters:
    """Type and check everything that the user set; the later of two values wins, `--set` over the file.

    `entry` is the base model's: its defaults stand under what was set, its ranges bound it.
    """
    given: dict[str, Any] = {}
    if config is not None:
        in_file = read_config(config)
        try:
            given |= _given(parse(in_file))
        except SettingError as error:
            raise SettingError(f"{config}: {error}") from None
    for name, value in split_pairs(pairs):
        given |= _given(parse({name: value}))
    return parse_for(entry, given)


def _given(settings: Hyperparameters) -> dict[str, Any]:
    return {name: settings[name] for name in settings.given} | settings.reserved


def as_strings(settings: Hyperparameters) -> dict[str, str]:
    """What the user set, by canonical name, as the job folder stores it: every value a string.

    SageMaker's own keys stay as they came.
    """
    return {name: str(settings[name]) for name in TABLE if name in settings.given} | settings.reserved


def hyperparameters(as_json: Json = False) -> None:
    """List every hyperparameter that --set and --config take: type, default, range and meaning."""
    if as_json:
        typer.echo(json.dumps([describe(row) for row in TABLE.values()], indent=1))
        return
    console = Console(highlight=False)
    for group, rows in itertools.groupby(TABLE.values(), lambda row: row.group):
        console.print(f"\n[bold]{TITLES[group]}[/]")
        for row in rows:
            other = f" (also {', '.join(row.aliases)})" if row.aliases else ""
            console.print(f"  [cyan]{row.name}[/] = {row.default}{other}")
            console.print(Padding(Text(f"{row.help}. Expected: {row.expected}."), (0, 0, 0, 6)))


def describe(row: Hyperparameter) -> dict[str, Any]:
    """One hyperparameter as plain data."""
    return {
        "name": row.name,
        "group": row.group,
        "type": TYPES[row.type],
        "default": row.default,
        "expected": row.expected,
        "minimum": row.minimum,
        "maximum": row.maximum,
        "choices": list(row.choices),
        "aliases": list(row.aliases),
        "help": row.help,
    }
