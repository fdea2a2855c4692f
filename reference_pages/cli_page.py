"""docs/cli.md: every command with its arguments and options."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from typer.models import ArgumentInfo, OptionInfo

from luthier.cli.app import app
from reference_pages.cell import NOTE, cell


def cli_page() -> str:
    """Return docs/cli.md: every command with its arguments and options."""
    parts = [
        NOTE,
        "# Command line\n",
        "`luthier COMMAND --help` shows the same. Each error is one line on stderr. Exit codes: 0 success, 1 failure "
        "of the machine or of Luthier, 2 error in the request or its input, 130 interrupted.\n",
    ]
    for path, function in commands():
        parts += _command(path, function)
    return "\n".join(parts)


def commands() -> list[tuple[str, Callable[..., Any]]]:
    """Return every command as the user types it, with its function."""
    pairs = [(f"luthier {item.name}", item.callback) for item in app.registered_commands]
    for group in app.registered_groups:
        inner = group.typer_instance.registered_commands if group.typer_instance else []
        pairs += [(f"luthier {group.name} {item.name}", item.callback) for item in inner]
    return [(path, function) for path, function in pairs if function is not None]


def _command(path: str, function: Callable[..., Any]) -> list[str]:
    usage, rows = [path], []
    hints = get_type_hints(function, include_extras=True)
    for name, parameter in inspect.signature(function).parameters.items():
        kind, *notes = get_args(hints[name]) if get_origin(hints[name]) is Annotated else (hints[name],)
        note = next((note for note in notes if isinstance(note, ArgumentInfo | OptionInfo)), None)
        if note is None:
            continue
        required = parameter.default is inspect.Parameter.empty
        if isinstance(note, ArgumentInfo):
            usage.append(str(note.metavar) if required else f"[{note.metavar}]")
            rows.append(f"| `{note.metavar}` | {cell(note.help or '')} | |")
        else:
            default = "required" if required else "" if parameter.default in (None, False) else f"`{parameter.default}`"
            rows.append(f"| {_forms(note, kind)} | {cell(note.help or '')} | {default} |")
    paragraphs = (function.__doc__ or "").strip().split("\n\n")
    parts = [f"## {path}\n", f"    {' '.join(usage)} [OPTIONS]\n" if rows else f"    {path}\n"]
    parts += [" ".join(paragraph.split()) + "\n" for paragraph in paragraphs]
    return parts + (["\n".join(["| | meaning | default |", "|---|---|---|", *rows]) + "\n"] if rows else [])


def _forms(option: OptionInfo, kind: Any) -> str:
    value_type = next((inner for inner in get_args(kind) if isinstance(inner, type)), kind)  # of `int | None`, the int
    value = "" if kind in (bool, bool | None) else f" {option.metavar or value_type.__name__.upper()}"
    # In Annotated[...] typer keeps the first spelling as `default` until it builds the command.
    spellings = [option.default, *(option.param_decls or ())]
    forms = sorted((str(form) for form in spellings if str(form).startswith("-")), key=len)
    return ", ".join(f"`{cell(form + (value if form.startswith('--') else ''))}`" for form in forms)
