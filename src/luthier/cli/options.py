"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from luthier.errors import SettingError

DEFAULT_MODEL = "luthier/tiny"
Kind = Literal["auto", "instruction", "autopilot", "chat", "domain"]


def check_device(value: str) -> str:
    """Check the form of a device name; the engine checks that the device exists."""
    kind, _, index = value.partition(":")
    if value not in ("auto", "cpu", "cuda", "mps") and not (kind == "cuda" and index.isascii() and index.isdigit()):
        raise SettingError(f"--device {value}: expected auto, cpu, cuda, cuda:N or mps")
    return value


Device = Annotated[
    str, typer.Option("--device", metavar="DEVICE", help="auto, cpu, cuda, cuda:N or mps.", callback=check_device)
]
Data = Annotated[str, typer.Argument(metavar="DATA", help="Folder of rows, one file, or s3://bucket/prefix.")]
Target = Annotated[
    str, typer.Argument(metavar="RUN_OR_MODEL", help="A run folder, or a base model (see `luthier models`).")
]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]
Model = Annotated[
    str,
    typer.Option("--model", "-m", metavar="MODEL", help="Base model: a catalogue name, a folder, a run, or ORG/NAME."),
]
KindOption = Annotated[
    Kind,
    typer.Option(
        "--kind", "-k", metavar="KIND", help="auto (detected from the rows), instruction, autopilot, chat or domain."
    ),
]
Validation = Annotated[
    str | None, typer.Option("--validation", metavar="DIR", help="Validation rows; replaces DATA/validation.")
]
Test = Annotated[str | None, typer.Option("--test", metavar="DIR", help="Test rows; replaces DATA/test.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", "-s", metavar="NAME=VALUE", help="Set a hyperparameter; may be repeated, the last value wins."
    ),
]
Config = Annotated[
    Path | None,
    typer.Option("--config", "-c", metavar="FILE", help="YAML file of hyperparameters; --set overrides it."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
MaxTruncated = Annotated[
    float | None,
    typer.Option("--max-truncated", metavar="SHARE", help="Fail if more than this share of rows would be truncated."),
]
ScoreRows = Annotated[
    str,
    typer.Option("--score-rows", metavar="N|all", help="Number of held-out rows also scored by generation; 0: none."),
]
Ranks = Annotated[
    int,
    typer.Option(
        "--ranks",
        metavar="N",
        min=0,
        help="Number of training processes on this machine; default one per GPU, or one without a GPU.",
    ),
]


def parse_score_rows(value: str) -> int:
    """Return the number of rows to score by generation; -1 for `all`."""
    if value == "all":
        return -1
    if not (value.isascii() and value.isdigit()):
        raise SettingError(f"--score-rows {value}: expected a whole number of at least 0, or all")
    return int(value)


def check_max_truncated(value: float | None) -> float | None:
    """Check that the share is between 0 and 1."""
    if value is not None and not 0 <= value <= 1:
        raise SettingError(f"--max-truncated {value:g}: expected a share between 0 and 1")
    return value
