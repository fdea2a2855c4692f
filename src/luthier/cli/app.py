"""The command tree, and what becomes of one command line: an answer, an error in one line, or a hand-over."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from luthier import __version__, entrypoint
from luthier.cli import (
    artifact,
    cache,
    env,
    inspect,
    jobs,
    keys,
    logs,
    machine,
    models,
    pretrain,
    score,
    serve,
    settings,
    tune,
)
from luthier.cli.engine import Call, hand_over
from luthier.errors import UserError

app = typer.Typer(
    name="luthier",
    help="Fine-tune foundation models on your own hardware.",
    epilog="Start with: luthier tune DATA. Hyperparameters: luthier hyperparameters. LUTHIER_DEBUG=1 shows tracebacks.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

TUNE, MEASURE, MODELS, SERVE, MACHINE = "Tune", "Measure and use", "Base models", "Serve", "This machine"
COMMANDS: tuple[tuple[str, str, Any], ...] = (
    ("tune", TUNE, tune.tune),
    ("inspect", TUNE, inspect.inspect),
    ("hyperparameters", TUNE, settings.hyperparameters),
    ("generate", MEASURE, score.generate),
    ("evaluate", MEASURE, score.evaluate),
    ("compare", MEASURE, score.compare),
    ("export", MEASURE, artifact.export),
    ("models", MODELS, models.models),
    ("pretrain", MODELS, pretrain.pretrain),
    ("serve", SERVE, serve.serve),
    ("env", SERVE, env.env),
    ("logs", SERVE, logs.logs),
    ("doctor", MACHINE, machine.doctor),
)
for _name, _panel, _function in COMMANDS:
    app.command(_name, rich_help_panel=_panel)(_function)
app.add_typer(jobs.app, name="jobs", rich_help_panel=SERVE)
app.add_typer(keys.app, name="keys", rich_help_panel=SERVE)
app.add_typer(cache.app, name="cache", rich_help_panel=MACHINE)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"luthier {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Fine-tune foundation models on your own hardware."""


def main() -> None:
    """Run one command line, then leave the process or become the engine program that the command asks for."""
    entrypoint.run(_run)


def _run() -> None:
    try:
        outcome = app(prog_name="luthier", standalone_mode=False)
    except typer.Abort:
        raise KeyboardInterrupt from None
    except typer.TyperException as error:
        raise UserError(_usage(error)) from None
    if isinstance(outcome, Call):
        hand_over(outcome)
    sys.stdout.flush()
    if isinstance(outcome, int):
        sys.exit(outcome)


def _usage(error: typer.TyperException) -> str:
    """A usage error in one line, with the help to look at."""
    say = getattr(error, "format_message", error.__str__)
    context = getattr(error, "ctx", None)
    hint = f" (see `{context.command_path} --help`)" if context is not None else ""
    return " ".join(say().split()).rstrip(".") + hint
