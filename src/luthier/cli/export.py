"""`luthier export`: write a run's tuned model as a folder that other programs load."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from luthier.cli.options import Run
from luthier.cli.program import Program
from luthier.errors import RunFolderError, UserError
from luthier.jobfolder import JobFolder


def export(
    run: Run,
    merged: Annotated[
        bool, typer.Option("--merged", help="Write whole weights, with the adapter merged into the base model.")
    ] = False,
    adapter: Annotated[bool, typer.Option("--adapter", help="Write only the adapter, in PEFT's layout.")] = False,
    plain: Annotated[
        bool, typer.Option("--plain", help="With --adapter: multiply the scale (alpha / r) into the weights.")
    ] = False,
    fp32: Annotated[
        bool, typer.Option("--fp32", help="With --merged: write fp32 weights; a 16-bit run's are rounded otherwise.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="DIR", help="Output folder; default RUN/export/<form>.")
    ] = None,
) -> Program:
    """Write the tuned model in Hugging Face layout: --merged for whole weights, --adapter for only the adapter."""
    if merged == adapter:
        raise UserError("choose the form: --merged (whole weights) or --adapter (only the adapter)")
    if (plain and merged) or (fp32 and adapter):
        raise UserError("--plain goes with --adapter, and --fp32 with --merged")
    folder = JobFolder(run)
    folder.read_spec()
    form = "merged" if merged else "adapter"
    target = (out or folder.root / "export" / form).absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise RunFolderError(f"{target}: folder exists and is not empty; choose another --out")
    request = {"run": str(folder.root), "form": form, "out": str(target), "plain": plain, "fp32": fp32}
    return Program("luthier.evaluation", ("export",), request)
