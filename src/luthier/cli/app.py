"""The command tree: runs one command line, prints an error as one line, or starts the program a command returns."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from luthier import __version__, entrypoint
from luthier.cli import (
    cache,
    doctor,
    env,
    export,
    hyperparameters,
    inspect,
    jobs,
    keys,
    logs,
    models,
    objects,
    pretrain,
    score,
    serve,
    tune,
)
from luthier.cli.program import Program, exec_program
from luthier.errors import UserError

app = typer.Typer(
    name="luthier",
    help="Fine-tune foundation models on your own hardware.",
    epilog="Start with: luthier tune DATA. Hyperparameters: luthier hyperparameters. LUTHIER_DEBUG=1 shows tracebacks.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

TUNE, EVALUATE, MODELS, SERVE, MACHINE = "Tune", "Evaluate and use", "Base models", "Serve", "This machine"
COMMANDS: tuple[tuple[str, str, Any], ...] = (
    ("tune", TUNE, tune.tune),
    ("inspect", TUNE, inspect.inspect),
    ("hyperparameters", TUNE, hyperparameters.hyperparameters),
    ("generate", EVALUATE, score.generate),
    ("evaluate", EVALUATE, score.evaluate),
    ("compare", EVALUATE, score.compare),
    ("export", EVALUATE, export.export),
    ("models", MODELS, models.models),
    ("pretrain", MODELS, pretrain.pretrain),
    ("serve", SERVE, serve.serve),
    ("env", SERVE, env.env),
    ("logs", SERVE, logs.logs),
    ("doctor", MACHINE, doctor.doctor),
)
for _name, _panel, _function in COMMANDS:
    app.command(_name, rich_help_panel=_panel)(_function)
app.add_typer(jobs.app, name="jobs", rich_help_panel=SERVE)
app.add_typer(keys.app, name="keys", rich_help_panel=SERVE)
app.add_typer(objects.app, name="objects", rich_help_panel=SERVE)
app.add_typer(cache.app, name="cache", rich_help_panel=MACHINE)


def _print_version(is_given: bool) -> None:
    if is_given:
        typer.echo(f"luthier {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Fine-tune foundation models on your own hardware."""


def main() -> None:
    """Run one command line; exit, or replace this process by the program that the command returned."""
    entrypoint.run(_run)


def resolve(arguments: Sequence[str]) -> Any:
    """Parse one command line and run its command; return what the command returns: a Program to run, or None."""
    words = list(arguments)
    try:
        return app(words, prog_name="luthier", standalone_mode=False, obj=words)
    except typer.Abort:
        raise KeyboardInterrupt from None
    except typer.TyperException as error:
        raise UserError(_usage_error(error)) from None


def _run() -> None:
    result = resolve(sys.argv[1:])
    if isinstance(result, Program):
        exec_program(result)
    sys.stdout.flush()
    if isinstance(result, int):
        sys.exit(result)


def _usage_error(error: typer.TyperException) -> str:
    """Format a usage error as one line with a hint at the command's help."""
    format_message = getattr(error, "format_message", error.__str__)
    context = getattr(error, "ctx", None)
    hint = f" (see `{context.command_path} --help`)" if context is not None else ""
    return " ".join(format_message().split()).rstrip(".") + hint
