"""`luthier generate`, `evaluate` and `compare`: what a model answers and how good it is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from luthier.catalog.locate import locate
from luthier.cli.channels import read_channels
from luthier.cli.engine import Call
from luthier.cli.options import (
    Config,
    Data,
    Device,
    Json,
    KindOption,
    Run,
    ScoreRows,
    Set,
    Target,
    Test,
    Validation,
    score_rows,
)
from luthier.cli.settings import as_strings, read_settings
from luthier.errors import UserError


def generate(
    target: Target,
    text: Annotated[
        str | None, typer.Argument(metavar="TEXT", help="A field's text, or a JSON object of fields.")
    ] = None,
    file: Annotated[Path | None, typer.Option("--file", "-f", metavar="ROWS", help="Answer every row.")] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Most tokens of an answer.")] = 128,
    beams: Annotated[
        int, typer.Option("--beams", min=1, max=64, help="Answers kept side by side; 1: the likeliest token each time.")
    ] = 1,
    raw: Annotated[bool, typer.Option("--raw", help="Take TEXT as the whole prompt; apply no template.")] = False,
    device: Device = "auto",
    as_json: Json = False,
) -> Call:
    """Answer a prompt, or every row of a file, through the template the run was trained with."""
    if (text is None) == (file is None):
        raise UserError('give either a text or --file ROWS, such as: luthier generate RUN "text"')
    if file is not None and not file.is_file():
        raise UserError(f"--file {file}: no such file")
    return Call(
        "luthier.evaluation",
        ("generate",),
        {
            "target": check_target(target),
            "text": text,
            "file": str(file.absolute()) if file else None,
            "max_new_tokens": max_new_tokens,
            "beams": beams,
            "raw": raw,
            "device": device,
            "json": as_json,
        },
    )


def evaluate(
    target: Target,
    data: Data,
    validation: Validation = None,
    test: Test = None,
    kind: KindOption = "auto",
    shots: Annotated[
        int, typer.Option("--shots", min=0, metavar="K", help="Solved examples put before each prompt.")
    ] = 0,
    settings: Set = None,
    config: Config = None,
    device: Device = "auto",
    scored: ScoreRows = "200",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="DIR", help="Keep metrics.json and scores.jsonl there.")
    ] = None,
    as_json: Json = False,
) -> Call:
    """Score a run or a base model on rows: loss, perplexity, token accuracy, ROUGE, exact match, F1.

    With --shots K each prompt is preceded by K solved training rows: the baseline that fine-tuning has to beat.
    """
    channels = read_channels(data, {"validation": validation, "test": test}, scoring=True)
    return Call(
        "luthier.evaluation",
        ("evaluate",),
        {
            "target": check_target(target),
            "channels": {name: str(path) for name, path in channels.items()},
            "kind": kind,
            "shots": shots,
            "device": device,
            "hyperparameters": as_strings(read_settings(config, settings or [], None)),
            "score_rows": score_rows(scored),
            "json": as_json,
            "out": str(out.absolute()) if out else None,
        },
    )


def compare(run: Run, as_json: Json = False) -> Call:
    """Show base against tuned on the run's held-out rows, each difference with its 95 % interval."""
    return Call("luthier.evaluation", ("compare",), {"run": str(run), "json": as_json})


def check_target(target: str) -> str:
    """The target itself, when it is a folder or a name that a model can be looked for under."""
    if not Path(target).expanduser().is_dir():
        locate(target)
    return target
