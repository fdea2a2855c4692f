"""`luthier export`: a run's tuned model as a folder that other programs load."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from luthier.cli.engine import Call
from luthier.cli.options import Run
from luthier.errors import RunFolderError, UserError
from luthier.jobfolder import JobFolder


def export(
    run: Run,
    merged: Annotated[bool, typer.Option("--merged", help="Whole weights, the adapter merged into the base.")] = False,
    adapter: Annotated[bool, typer.Option("--adapter", help="The adapter alone, in PEFT's layout.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="DIR", help="Folder to write; default RUN/export/<form>.")
    ] = None,
) -> Call:
    """Write the tuned model in Hugging Face layout: --merged for whole weights, --adapter for the adapter alone."""
    if merged == adapter:
        raise UserError("choose the form: --merged (whole weights) or --adapter (the adapter alone)")
    folder = JobFolder(run)
    folder.read_job()
    form = "merged" if merged else "adapter"
    target = (out or folder.root / "export" / form).absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise RunFolderError(f"{target}: exists and is not an empty folder; choose another --out")
    return Call("luthier.evaluation", ("export",), {"run": str(folder.root), "form": form, "out": str(target)})
