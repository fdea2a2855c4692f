"""Hyperparameters on the command line: `--config FILE`, `--set NAME=VALUE`, and `luthier hyperparameters`.

Applies the precedence (model's defaults < file < --set); names, types and ranges come from the catalogue.
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
    "pattern": "regular expression", "fixed": "fixed",
}  # fmt: skip
"""Displayed name of a row's type. A fixed row accepts only its default."""

TITLES = {
    "data": "Data", "run": "Run", "method": "Method", "optimizer": "Optimizer",
    "validation": "Validation, checkpoints and logging", "fixed": "No effect: only the default is accepted",
}  # fmt: skip


class _NoDuplicates(yaml.SafeLoader):
    """YAML that refuses a repeated key; plain YAML silently keeps the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                line = key.start_mark.line + 1
                raise SettingError(f"{self.name}:{line}: {key.value!r} is set twice; keep one")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_config(path: Path) -> dict[str, Any]:
    """Read a YAML file of `name: value` lines; SettingError with file and line of a fault."""
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
        raise SettingError(f"{where}: invalid YAML: {getattr(error, 'problem', None) or error}") from None
    if content is None:
        return {}
    if not isinstance(content, dict) or any(isinstance(value, dict) for value in content.values()):
        raise SettingError(f"{path}: expected lines of the form `name: value`, without nesting")
    return {str(name): value for name, value in content.items()}


def split_pairs(pairs: Iterable[str]) -> list[tuple[str, str]]:
    """Split `name=value` texts; a value may contain `=`."""
    split = []
    for pair in pairs:
        name, sign, value = pair.partition("=")
        if not sign or not name.strip():
            close = did_you_mean(pair, TABLE) if pair not in TABLE else ""
            raise SettingError(f"--set {pair}: expected NAME=VALUE, such as epoch=3{close}")
        split.append((name.strip(), value))
    return split


def read_hyperparameters(config: Path | None, pairs: Iterable[str], entry: Entry | None) -> Hyperparameters:
    """Parse and check the file and the `--set` pairs; a later value wins, `--set` overrides the file.

    `entry` is the base model's: its defaults apply to unset names, its ranges to all.
    """
    values: dict[str, Any] = {}
    if config is not None:
        content = read_config(config)
        try:
            values |= _explicit(parse(content))
        except SettingError as error:
            raise SettingError(f"{config}: {error}") from None
    for name, value in split_pairs(pairs):
        values |= _explicit(parse({name: value}))
    return parse_for(entry, values)


def _explicit(settings: Hyperparameters) -> dict[str, Any]:
    return {name: settings[name] for name in settings.explicit} | settings.reserved


def to_strings(settings: Hyperparameters) -> dict[str, str]:
    """Return what the user set as the job folder stores it: canonical names, every value a string.

    SageMaker's own keys stay unchanged.
    """
    return settings.to_strings() | settings.reserved


def hyperparameters(as_json: Json = False) -> None:
    """List every hyperparameter of --set and --config: default, range and meaning."""
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
    """A hyperparameter as JSON data."""
    return {
        "name": row.name, "group": row.group, "type": TYPES[row.type], "default": row.default,
        "expected": row.expected, "minimum": row.minimum, "maximum": row.maximum, "choices": list(row.choices),
        "aliases": list(row.aliases), "help": row.help,
    }  # fmt: skip
