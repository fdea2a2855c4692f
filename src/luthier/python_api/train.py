"""A training program run from Python: with a progress bar, and a way to resume what was interrupted."""

from __future__ import annotations

from luthier.cli.program import Program
from luthier.errors import Interrupted
from luthier.jobfolder import JobFolder
from luthier.python_api.program import run_program
from luthier.python_api.progress import MetricsProgressBar, in_notebook


def train(program: Program, verbose: bool, progress: bool | None) -> None:
    """Run the training program on the run folder that is its first argument."""
    folder = JobFolder(program.arguments[0])
    bar = MetricsProgressBar(folder) if (in_notebook() if progress is None else progress) else None
    try:
        run_program(program, verbose, bar.update if bar else lambda line: None)
    except Interrupted as error:
        raise Interrupted(f"{error}; resume with: luthier.Run({str(folder.root)!r}).resume()") from None
    finally:
        if bar:
            bar.close()
