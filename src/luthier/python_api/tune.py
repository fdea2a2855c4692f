"""`luthier.tune`: lay out a run folder, train in it, return the run."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

from luthier.cli.options import DEFAULT_MODEL, Kind
from luthier.python_api.program import command, set_options
from luthier.python_api.run import Run
from luthier.python_api.train import train


def tune(
    data: str | Path,
    *,
    model: str | Path = DEFAULT_MODEL,
    kind: Kind = "auto",
    validation: str | Path | None = None,
    test: str | Path | None = None,
    out: str | Path | None = None,
    config: str | Path | None = None,
    device: str = "auto",
    accept_eula: bool = False,
    max_truncated: float | None = None,
    score_rows: int | str = "200",
    ranks: int = 0,
    verbose: bool = False,
    progress: bool | None = None,
    **hyperparameters: Any,
) -> Run:
    """Tune a base model on rows and return the run, scored before and after on held-out rows.

    Arguments are the options of `luthier tune`; `hyperparameters` are what its --set takes, such as epoch=3.
    `verbose` prints the engine's output; `progress` shows a bar (None: in a notebook). Ctrl-C writes a checkpoint and
    raises Interrupted; `Run(path).resume()` goes on. UserError, DataError, SettingError and the others of
    luthier.errors as on the command line.
    """
    with contextlib.nullcontext() if verbose else contextlib.redirect_stderr(io.StringIO()):
        program = command(
            "tune", data, flags=set_options(hyperparameters), model=model, kind=kind, validation=validation, test=test,
            out=out, config=config, device=device, accept_eula=accept_eula, max_truncated=max_truncated,
            score_rows=score_rows, ranks=ranks or None,
        )  # fmt: skip
    train(program, verbose, progress)
    return Run(program.arguments[0])
