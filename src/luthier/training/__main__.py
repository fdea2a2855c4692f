"""The engine's door: ``python -m luthier.training FOLDER [--resume] [--ranks N]``, a job folder in, an exit code out.

    one rank     the job runs in this process
    more         this process runs itself under torchrun, once for each rank, and speaks for them (launch.py)
    torchrun     started by somebody else's torchrun, this process is one of the ranks

A failure leaves its reason in output/failure, as SageMaker's containers do, and prints it in one line.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import traceback
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console

from luthier import entrypoint
from luthier.errors import LuthierError
from luthier.jobfolder import JobFolder
from luthier.training import launch
from luthier.training.process_group import ProcessGroup, joined, under_torchrun


def main(arguments: list[str]) -> None:
    """Run the job in the folder named by `arguments`."""
    parser = argparse.ArgumentParser(prog="python -m luthier.training")
    parser.add_argument("folder", help="the job folder")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint")
    parser.add_argument("--ranks", type=int, default=0, help="processes that train together; 0: as the job says")
    asked = parser.parse_args(arguments)
    folder = JobFolder(asked.folder)
    place = launch.beside()
    if place:
        _as_rank(folder, asked.resume, place)
        return
    try:
        _run(folder, asked.resume, asked.ranks)
    except LuthierError as error:
        write_failure(folder, str(error))
        raise
    except Exception as error:
        write_failure(folder, f"AlgorithmError: {type(error).__name__}: {error}")
        raise


def _run(folder: JobFolder, resume: bool, asked: int) -> None:
    console = Console(soft_wrap=False)
    if under_torchrun():
        with joined() as ranks:
            run_job(folder, resume, _voice(ranks), ranks)
        return
    size = launch.wanted(folder.read_spec(), asked)
    if size == 1:
        run_job(folder, resume, console)
        return
    with folder.locked():
        again = ["--resume"] if resume else []
        launch.launch([str(folder.root), *again], size, lambda text: console.print(text, markup=False))


def _as_rank(folder: JobFolder, resume: bool, place: Path) -> None:
    """Be one of the ranks that our own launcher started."""
    rank = int(os.environ["RANK"])
    launch.end_with_launcher(place)
    try:
        with joined() as ranks:
            ranks.ask = lambda: launch.stop_asked(place)
            run_job(folder, resume, _voice(ranks), ranks, locked=True)
    except Exception as error:
        if os.environ.get("LUTHIER_DEBUG"):
            traceback.print_exception(error)
        # Not sys.exit: other ranks may wait for this one in an exchange, and tidying up would wait for them.
        _leave(launch.report_ending(place, rank, error))
    # All of it is on disk: a library's thread that is still there at exit could only end a good run with SIGABRT.
    _leave(0)


def _leave(code: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def run_job(*arguments: Any, **options: Any) -> None:
    """`job.run_job`; what it needs is loaded where a job runs, not where ranks are only watched."""
    with entrypoint.without_garbage_collection():
        job = importlib.import_module("luthier.training.job")
    job.run_job(*arguments, **options)


def _voice(ranks: ProcessGroup) -> Console:
    """Rank 0 speaks."""
    return Console(soft_wrap=False, quiet=not ranks.leads)


def write_failure(folder: JobFolder, reason: str) -> None:
    """output/failure: at most 1,024 characters reach SageMaker's FailureReason."""
    if folder.config.is_dir():
        folder.output.mkdir(exist_ok=True)
        folder.failure.write_text(reason[:1024] + "\n", "utf-8")


if __name__ == "__main__":
    entrypoint.run(lambda: main(sys.argv[1:]))
