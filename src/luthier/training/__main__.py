"""Entry point of the engine: ``python -m luthier.training FOLDER [--resume] [--ranks N]`` runs a job folder.

    one rank     the job runs in this process
    more         this process launches itself under torchrun, once per rank, and reports for the ranks (launch.py)
    torchrun     started by the user's own torchrun, this process is one of the ranks

A failure writes its reason to output/failure, as SageMaker's containers do, and prints it in one line.
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
from luthier.exhaustion import capacity_error
from luthier.jobfolder import LONGEST_FAILURE, JobFolder
from luthier.training import launch
from luthier.training.process_group import ProcessGroup, init_process_group, is_under_torchrun


def main(arguments: list[str]) -> None:
    """Run the job in the folder named by `arguments`."""
    parser = argparse.ArgumentParser(prog="python -m luthier.training")
    parser.add_argument("folder", help="the job folder")
    parser.add_argument("--resume", action="store_true", help="resume from the newest checkpoint")
    parser.add_argument("--ranks", type=int, default=0, help="processes that train together; 0: as the job says")
    options = parser.parse_args(arguments)
    folder = JobFolder(options.folder)
    launch_folder = launch.launch_folder()
    if launch_folder:
        _run_launched_rank(folder, options.resume, launch_folder)
        return
    try:
        _run(folder, options.resume, options.ranks)
    except Exception as error:
        if exhausted := capacity_error(error):
            write_failure(folder, f"InternalServerError: {exhausted}")
        elif isinstance(error, LuthierError):
            write_failure(folder, str(error))
        else:
            write_failure(folder, f"AlgorithmError: {type(error).__name__}: {error}")
        raise


def _run(folder: JobFolder, resume: bool, ranks: int) -> None:
    console = Console(soft_wrap=False)
    if is_under_torchrun():
        with init_process_group() as group:
            run_job(folder, resume, _console_of(group), group)
        return
    world_size = launch.resolve_world_size(folder.read_spec(), ranks)
    if world_size == 1:
        run_job(folder, resume, console)
        return
    with folder.locked():
        arguments = [str(folder.root), *(["--resume"] if resume else [])]
        launch.launch(arguments, world_size, lambda text: console.print(text, markup=False))


def _run_launched_rank(folder: JobFolder, resume: bool, launch_folder: Path) -> None:
    """Run the job as one of the ranks that our own launcher started; does not return."""
    rank = int(os.environ["RANK"])
    launch.exit_with_launcher(launch_folder)
    try:
        with init_process_group() as group:
            group.poll_stop = lambda: launch.is_stop_requested(launch_folder)
            run_job(folder, resume, _console_of(group), group, locked=True)
    except Exception as error:
        if os.environ.get("LUTHIER_DEBUG"):
            traceback.print_exception(error)
        # Not sys.exit: the interpreter's cleanup would wait for ranks that wait for this one in a collective.
        _exit(launch.report_failure(launch_folder, rank, error))
    # Everything is on disk: a library's thread that still runs could only end a good run with SIGABRT.
    _exit(0)


def _exit(code: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def run_job(*arguments: Any, **options: Any) -> None:
    """`job.run_job`; its imports are loaded in processes that run a job, not in the launcher of ranks."""
    with entrypoint.without_garbage_collection():
        job = importlib.import_module("luthier.training.job")
    job.run_job(*arguments, **options)


def _console_of(group: ProcessGroup) -> Console:
    """A console that prints on rank 0 only."""
    return Console(soft_wrap=False, quiet=not group.is_main)


def write_failure(folder: JobFolder, reason: str) -> None:
    """Write output/failure, from which SageMaker's FailureReason is read."""
    if folder.config.is_dir():
        folder.output.mkdir(exist_ok=True)
        folder.failure.write_text(reason[:LONGEST_FAILURE] + "\n", "utf-8")


if __name__ == "__main__":
    entrypoint.run(lambda: main(sys.argv[1:]))
