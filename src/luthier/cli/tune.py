"""`luthier tune`: create a run folder, or check that an existing one can be resumed, and start the training program.

Cheap checks run here, before a folder is created.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from luthier import storage
from luthier.catalog.entry import check_tunable, licence_record
from luthier.catalog.hyperparameters import parse
from luthier.catalog.locate import Location, locate
from luthier.cli.channels import read_channels
from luthier.cli.hyperparameters import read_hyperparameters, to_strings
from luthier.cli.options import (
    DEFAULT_MODEL,
    Config,
    Device,
    KindOption,
    MaxTruncated,
    Model,
    Ranks,
    ScoreRows,
    Set,
    Test,
    Validation,
    check_max_truncated,
    parse_score_rows,
)
from luthier.cli.program import Program
from luthier.errors import RunFolderError, UserError
from luthier.jobfolder import JobFolder
from luthier.jobspec import JobSpec


def tune(
    context: typer.Context,
    data: Annotated[
        str | None, typer.Argument(metavar="DATA", help="Folder of rows, one file, or s3://bucket/prefix.")
    ] = None,
    model: Model = DEFAULT_MODEL,
    kind: KindOption = "auto",
    validation: Validation = None,
    test: Test = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="DIR", help="Run folder; default runs/<time>-<model>.")
    ] = None,
    settings: Set = None,
    config: Config = None,
    device: Device = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the newest checkpoint in --out.")] = False,
    accept_eula: Annotated[
        bool, typer.Option("--accept-eula", help="Accept the licence of a gated base model.")
    ] = False,
    max_truncated: MaxTruncated = None,
    score_rows: ScoreRows = "200",
    ranks: Ranks = 0,
) -> Program:
    """Tune a base model on a folder of rows and compare it with the base model on held-out rows.

    DATA contains training/ and optionally validation/ and test/, or only the training rows. `luthier hyperparameters`
    lists the names for --set. To continue an interrupted run: luthier tune --resume --out RUN
    """
    spec = JobSpec(
        model=model, kind=kind, device=device, command=["luthier", *(context.obj or sys.argv[1:])],
        max_truncated=check_max_truncated(max_truncated), score_rows=parse_score_rows(score_rows), ranks=ranks,
    )  # fmt: skip
    splits = {"validation": validation, "test": test}
    if resume:
        if out is None:
            raise UserError("--resume needs the run folder: --out RUN")
        options = {name: getattr(spec, name) for name in _JOB_OPTIONS if _is_given(context, name)}
        hyperparameters = to_strings(read_hyperparameters(config, settings or [], None))
        _check_resume(JobFolder(out), data, splits, options, hyperparameters)
        # The number of ranks may change: a step keeps its rows.
        rank_option = ("--ranks", str(ranks)) if _is_given(context, "ranks") else ()
        return Program("luthier.training", (str(out.absolute()), "--resume", *rank_option))
    if data is None:
        raise UserError("missing DATA; expected: luthier tune DATA (a folder of rows, a file, or s3://bucket/prefix)")
    location = locate(model)
    check_tunable(location.entry)
    eula = licence_record(location.entry, accept_eula, os.environ.get("USER", ""), "add --accept-eula")
    values = read_hyperparameters(config, settings or [], location.entry)
    if location.adapter is not None:
        location.adapter.apply_to(values)  # a SettingError before the folder is created
    hyperparameters = to_strings(values)
    folder = JobFolder(out or default_out(location))
    _create(folder, data, splits, replace(spec, eula=eula, hyperparameters=hyperparameters))
    return Program("luthier.training", (str(folder.root),))


_JOB_OPTIONS = ("model", "kind", "device", "max_truncated", "score_rows")
"""Options that are stored as the field of JobSpec with the same name, and must not change on --resume."""


def _is_given(context: typer.Context, name: str) -> bool:
    """True when the option is on the command line rather than at its default."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def default_out(location: Location, now: time.struct_time | None = None) -> Path:
    """Return `runs/<time>-<model>`, with the model's base name in characters that any shell accepts."""
    name = location.entry.id if location.entry else location.name
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", name.rstrip("/").rsplit("/", 1)[-1]).strip("-.") or "model"
    return Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S', now or time.localtime())}-{slug}"


def _create(folder: JobFolder, data: str, splits: Mapping[str, str | None], spec: JobSpec) -> None:
    """Create the run folder under its lock; delete it again on failure."""

    def fetch(location: str, split: str) -> Path:
        typer.echo(f"copying {location}", err=True)
        return storage.download(location, folder.root / "input" / "s3" / split)

    new_folders = [path for path in (folder.root, *folder.root.parents) if not path.exists()]
    with folder.locked():
        if any(path.name != ".lock" for path in folder.root.iterdir()):
            raise RunFolderError(
                f"{folder.root}: folder is not empty; choose another --out, or continue that run: "
                f"luthier tune --resume --out {shlex.quote(str(folder.root))}"
            )
        try:
            folder.create(spec, read_channels(data, splits, fetch))
        except BaseException:
            shutil.rmtree(folder.root / "input", ignore_errors=True)
            (folder.root / ".lock").unlink(missing_ok=True)
            for path in new_folders:
                path.rmdir()
            raise


def _check_resume(
    folder: JobFolder,
    data: str | None,
    splits: Mapping[str, str | None],
    options: Mapping[str, Any],
    hyperparameters: Mapping[str, str],
) -> None:
    """RunFolderError, one line per difference, if the settings differ from those the run was started with."""
    spec = folder.read_spec()
    stored = parse(spec.hyperparameters)
    current = parse(hyperparameters)
    pairs = [(f"--{name.replace('_', '-')}", value, getattr(spec, name)) for name, value in options.items()]
    pairs += [(f"--set {name}", current[name], stored[name]) for name in hyperparameters if name in current]
    if data is not None:
        channels = read_channels(data, splits, lambda _, split: folder.root / "input" / "s3" / split)
        pairs += [(name, path.resolve(), folder.channel(name).resolve()) for name, path in channels.items()]
    lines = [
        f"{folder.root}: {name} was {old}, now {new}; a resumed run keeps its settings: omit it or start a new run"
        for name, new, old in pairs
        if new != old
    ]
    if lines:
        raise RunFolderError("\n".join(lines))
