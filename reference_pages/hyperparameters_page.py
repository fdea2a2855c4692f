"""docs/hyperparameters.md: the table of hyperparameters, and the models' own defaults and ranges."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import groupby
from pathlib import Path

from luthier.catalog.entry import entries
from luthier.catalog.hyperparameters import (
    AUTOPILOT,
    MAX_HYPERPARAMETERS,
    MAX_NAME_LENGTH,
    MAX_VALUE_LENGTH,
    RESERVED,
    TABLE,
    Hyperparameter,
)
from luthier.cli.hyperparameters import TITLES, TYPES
from luthier.errors import LuthierError
from reference_pages.cell import NOTE, cell


def hyperparameters_page() -> str:
    """Return docs/hyperparameters.md: the table by group, and the models' own defaults and ranges."""
    test_files = hyperparameter_tests()
    parts = [
        NOTE,
        "# Hyperparameters\n",
        "Set a hyperparameter with `--set NAME=VALUE` or as a line `name: value` of a YAML file (`--config FILE`); "
        "`--set` overrides the file, and the last value wins. Names are JumpStart's where JumpStart has one. A base "
        "model's own defaults override those of this table; they are listed "
        "[below](#defaults-and-ranges-of-the-models) and by `luthier models NAME`.\n",
        'Values may have the form that SageMaker\'s SDK sends: text, JSON (`"5"` with quotes, `true`, '
        f'`["q_proj", "v_proj"]`), and `None` or `null` for -1 where -1 is allowed. Keys that start with `{RESERVED}` '
        "belong to SageMaker: Luthier records them and does not use them. A job accepts at most "
        f"{MAX_HYPERPARAMETERS} names of at most {MAX_NAME_LENGTH} characters, "
        f"with values of at most {MAX_VALUE_LENGTH:,} characters.\n",
        "A test shows the effect of each hyperparameter: "
        "`pytest 'tests/training/test_every_hyperparameter.py::test_hyperparameter_has_its_effect[NAME]'`; the last "
        "column names the file.\n",
    ]
    head = ["| name | type | default | range | effect | test |", "|---|---|---|---|---|---|"]
    for group, rows in groupby(TABLE.values(), lambda row: row.group):
        table = head + [_row(row, test_files.get(row.name, "")) for row in rows]
        parts += [f"## {TITLES[group]}\n", "\n".join(table) + "\n"]
    return "\n".join([*parts, *_autopilot(), *_models()])


def _row(row: Hyperparameter, file: str) -> str:
    aliases = f"; also named {', '.join(f'`{alias}`' for alias in row.aliases)}" if row.aliases else ""
    test = f"[{file.removesuffix('.py')}](../tests/training/{file})" if file else ""
    bounds = cell(range_of(row))
    return f"| `{row.name}` | {TYPES[row.type]} | `{row.default}` | {bounds} | {cell(row.help)}{aliases} | {test} |"


def range_of(row: Hyperparameter) -> str:
    """Describe the values that a row accepts in a few words."""
    if row.type in ("bool", "text", "pattern") or row.choices:
        return ", ".join(row.choices) or {"bool": "True, False"}.get(row.type, "")
    words = row.expected.removeprefix("a whole number").removeprefix("a number").removeprefix(" of").strip()
    return re.sub(r"^at least (\S+) and at most (\S+)", r"\1 to \2", words)


def hyperparameter_tests() -> dict[str, str]:
    """Map each hyperparameter to the test file that registers its effect with `.of("name", ...)`."""
    folder = Path(__file__).resolve().parents[1] / "tests" / "training"
    if not folder.is_dir():
        raise LuthierError(f"{folder}: no such folder; run this in a checkout of Luthier")
    files: dict[str, str] = {}
    for path in sorted(folder.glob("*_hyperparameter*.py")):
        for names in re.findall(r"CHECKS\.of\(([^)]*)\)", path.read_text("utf-8")):
            files |= dict.fromkeys(re.findall(r'"(\w+)"', names), path.name)
    return files


def _autopilot() -> list[str]:
    rows = [f"| `{name}` | `{target}` | {low:g} to {high:g} |" for name, (target, low, high) in AUTOPILOT.items()]
    return [
        "## Autopilot's names\n",
        "CreateAutoMLJobV2 accepts these four names; under them a hyperparameter has Autopilot's range (a learning "
        "rate of 0 is refused).\n",
        "\n".join(["| name | hyperparameter | range |", "|---|---|---|", *rows]) + "\n",
    ]


def _models() -> list[str]:
    """Models with the same defaults and ranges share a line; models without any are left out."""
    groups: dict[tuple[str, str], list[str]] = {}
    for entry in entries():
        own = {name: TABLE[name].parse(value) for name, value in entry.default_hyperparameters.items()}
        changed = [name for name, row in TABLE.items() if own.get(name, row.default) != row.default]
        defaults = ", ".join(f"`{name}` {own[name]}" for name in changed)
        ranges = ", ".join(f"`{name}` {_bounds(bounds)}" for name, bounds in entry.hyperparameter_ranges.items())
        groups.setdefault((defaults, ranges), []).append(entry.id)
    rows = [f"| {', '.join(ids)} | {own} | {ranges} |" for (own, ranges), ids in groups.items() if own or ranges]
    return [
        "## Defaults and ranges of the models\n",
        "Only where they differ from the tables above; a model that is not listed has none of its own.\n",
        "\n".join(["| models | defaults | ranges |", "|---|---|---|", *rows]) + "\n",
    ]


def _bounds(bounds: Mapping[str, float]) -> str:
    words = {"minimum": "at least", "maximum": "at most"}
    return " and ".join(f"{words[name]} {value:.10g}" for name, value in sorted(bounds.items(), reverse=True))
