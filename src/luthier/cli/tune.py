"""`luthier tune`: lay out a run folder, or check that an old one can go on, and hand it to the engine.

What can be refused before the engine starts is refused here, before a folder is made.
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
from luthier.catalog.entry import Entry, check_tunable
from luthier.catalog.hyperparameters import parse
from luthier.catalog.locate import Location, locate
from luthier.cli.channels import read_channels
from luthier.cli.engine import Call
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
    max_truncated,
    score_rows,
)
from luthier.cli.settings import as_strings, read_settings
from luthier.errors import EulaError, RunFolderError, UserError
from luthier.jobfolder import Job, JobFolder


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
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint in --out.")] = False,
    accept_eula: Annotated[
        bool, typer.Option("--accept-eula", help="Accept the licence of a gated base model.")
    ] = False,
    truncated: MaxTruncated = None,
    scored: ScoreRows = "200",
    ranks: Ranks = 0,
) -> Call:
    """Tune a base model on a folder of rows and show, on held-out rows, what it gained.

    DATA holds training/ and, if you have them, validation/ and test/; or only the training rows themselves.
    `luthier hyperparameters` lists what --set takes. To go on after an interruption: luthier tune --resume --out RUN
    """
    job = Job(model, kind, device, ["luthier", *sys.argv[1:]], max_truncated(truncated), score_rows(scored), ranks)
    sides = {"validation": validation, "test": test}
    if resume:
        if out is None:
            raise UserError("--resume needs the run to go on with: --out RUN")
        given = [name for name in _JOB_OPTIONS if _is_given(context, name)]
        asked = {_JOB_OPTIONS[name]: getattr(job, _JOB_OPTIONS[name]) for name in given}
        again = as_strings(read_settings(config, settings or [], None))
        _check_resume(JobFolder(out), data, sides, asked, again)
        own = ("--ranks", str(ranks)) if _is_given(context, "ranks") else ()  # may differ: the rows of a step stay
        return Call("luthier.training", (str(out.absolute()), "--resume", *own))
    if data is None:
        raise UserError(
            "no DATA is given; expected: luthier tune DATA (a folder of rows, a file, or s3://bucket/prefix)"
        )
    location = locate(model)
    check_tunable(location.entry)
    job = replace(job, eula=_accepted(location.entry, accept_eula))
    strings = as_strings(read_settings(config, settings or [], location.entry))
    folder = JobFolder(out or default_out(location))
    _create(folder, data, sides, job, strings)
    return Call("luthier.training", (str(folder.root),))


_JOB_OPTIONS = {"model": "model", "kind": "kind", "device": "device", "truncated": "max_truncated",
                "scored": "score_rows"}  # fmt: skip
"""Options that the job stores: parameter of `tune` -> field of Job."""


def _is_given(context: typer.Context, name: str) -> bool:
    """True when the option stands on the command line, rather than at its default."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _accepted(entry: Entry | None, accept: bool) -> dict[str, str] | None:
    """The record of an accepted licence, None where none is asked for; EulaError when it must be accepted first."""
    if entry is None or not entry.licence.eula:
        return None
    if not accept:
        raise EulaError(
            f"{entry.id} is licensed under {entry.licence.name}, which must be accepted first: read "
            f"{entry.licence.url}, then add --accept-eula"
        )
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    who = os.environ.get("USER", "")
    return {"accepted": when, "licence": entry.licence.name, "url": entry.licence.url, "by": who}


def default_out(location: Location, now: time.struct_time | None = None) -> Path:
    """`runs/<time>-<model>` in the current folder; the model's last name, in characters safe in any shell."""
    plain = location.entry.id if location.entry else location.name
    short = re.sub(r"[^A-Za-z0-9._-]+", "-", plain.rstrip("/").rsplit("/", 1)[-1]).strip("-.") or "model"
    return Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S', now or time.localtime())}-{short}"


def _create(
    folder: JobFolder, data: str, sides: Mapping[str, str | None], job: Job, hyperparameters: Mapping[str, str]
) -> None:
    """Lay the run folder out, holding its lock; on failure nothing of it is left."""

    def fetch(location: str, side: str) -> Path:
        typer.echo(f"copying {location}", err=True)
        return storage.download(location, folder.root / "input" / "s3" / side)

    made = [path for path in (folder.root, *folder.root.parents) if not path.exists()]
    with folder.locked():
        if any(path.name != ".lock" for path in folder.root.iterdir()):
            raise RunFolderError(
                f"{folder.root}: the folder is not empty; choose another --out, or go on with that run: "
                f"luthier tune --resume --out {shlex.quote(str(folder.root))}"
            )
        try:
            folder.create(job, hyperparameters, read_channels(data, sides, fetch))
        except BaseException:
            shutil.rmtree(folder.root / "input", ignore_errors=True)
            (folder.root / ".lock").unlink(missing_ok=True)
            for path in made:
                path.rmdir()
            raise


def _check_resume(
    folder: JobFolder,
    data: str | None,
    sides: Mapping[str, str | None],
    asked: Mapping[str, Any],
    hyperparameters: Mapping[str, str],
) -> None:
    """Refuse to go on with a run under other settings than it was started with; every difference is a line."""
    job = folder.read_job()
    stored = parse(folder.read_hyperparameters())
    again = parse(hyperparameters)
    differing = [(f"--{name.replace('_', '-')}", value, getattr(job, name)) for name, value in asked.items()]
    differing += [(f"--set {name}", again[name], stored[name]) for name in hyperparameters if name in again]
    if data is not None:
        channels = read_channels(data, sides, lambda _, side: folder.root / "input" / "s3" / side)
        differing += [(name, path.resolve(), folder.channel(name).resolve()) for name, path in channels.items()]
    lines = [
        f"{folder.root}: {name} was {old}, now {new}; a resumed run keeps its settings: leave it out or start a new run"
        for name, new, old in differing
        if new != old
    ]
    if lines:
        raise RunFolderError("\n".join(lines))
