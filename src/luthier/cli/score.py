"""`luthier generate`, `evaluate` and `compare`: use a model and score it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from luthier.catalog.locate import locate
from luthier.cli.channels import read_channels
from luthier.cli.hyperparameters import read_hyperparameters, to_strings
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
    parse_score_rows,
)
from luthier.cli.program import Program
from luthier.errors import UserError


def generate(
    target: Target,
    text: Annotated[
        str | None,
        typer.Argument(metavar="TEXT", help="Text of the template's field or of the user's message, or JSON."),
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", metavar="ROWS", help="Generate for every row of this file.")
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", min=1, help="Maximum number of tokens to generate.")
    ] = 128,
    beams: Annotated[int, typer.Option("--beams", min=1, max=64, help="Beam width; 1 means greedy decoding.")] = 1,
    raw: Annotated[bool, typer.Option("--raw", help="Use TEXT as the whole prompt, without a template.")] = False,
    device: Device = "auto",
    as_json: Json = False,
) -> Program:
    """Generate text for a prompt, or for every row of a file, using the template that the run was trained with."""
    if (text is None) == (file is None):
        raise UserError('expected either TEXT or --file ROWS, such as: luthier generate RUN "text"')
    if file is not None and not file.is_file():
        raise UserError(f"--file {file}: no such file")
    return Program(
        "luthier.evaluation",
        ("generate",),
        {
            "target": check_target(target), "text": text, "file": str(file.absolute()) if file else None,
            "max_new_tokens": max_new_tokens, "beams": beams, "raw": raw, "device": device, "json": as_json,
        },
    )  # fmt: skip


def evaluate(
    target: Target,
    data: Data,
    validation: Validation = None,
    test: Test = None,
    kind: KindOption = "auto",
    shots: Annotated[
        int, typer.Option("--shots", min=0, metavar="K", help="Number of solved examples before each prompt.")
    ] = 0,
    settings: Set = None,
    config: Config = None,
    device: Device = "auto",
    score_rows: ScoreRows = "200",
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="DIR", help="Write metrics.json and scores.jsonl to this folder."),
    ] = None,
    as_json: Json = False,
) -> Program:
    """Score a run or a base model on rows: loss, perplexity, token accuracy, ROUGE, exact match, F1.

    With --shots K, K solved training rows precede each prompt: the few-shot baseline that fine-tuning should beat.
    """
    channels = read_channels(data, {"validation": validation, "test": test}, scoring=True)
    return Program(
        "luthier.evaluation",
        ("evaluate",),
        {
            "target": check_target(target), "channels": {name: str(path) for name, path in channels.items()},
            "kind": kind, "shots": shots, "device": device,
            "hyperparameters": to_strings(read_hyperparameters(config, settings or [], None)),
            "score_rows": parse_score_rows(score_rows), "json": as_json, "out": str(out.absolute()) if out else None,
        },
    )  # fmt: skip


def compare(run: Run, as_json: Json = False) -> Program:
    """Compare base and tuned model on the run's held-out rows, with a 95 % interval for each difference."""
    return Program("luthier.evaluation", ("compare",), {"run": str(run), "json": as_json})


def check_target(target: str) -> str:
    """Return `target` if it is a folder or a valid model name; ModelNotFoundError otherwise."""
    if not Path(target).expanduser().is_dir():
        locate(target)
    return target
