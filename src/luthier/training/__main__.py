"""The engine's door: ``python -m luthier.training FOLDER [--resume]``, a job folder in, an exit code out.

A failure leaves its reason in output/failure, as SageMaker's containers do, and prints it in one line.
"""

from __future__ import annotations

import argparse
import sys

from rich.console import Console

from luthier import door
from luthier.errors import LuthierError
from luthier.jobfolder import JobFolder
from luthier.training.job import run_job


def main(arguments: list[str]) -> None:
    """Run the job in the folder named by `arguments`."""
    parser = argparse.ArgumentParser(prog="python -m luthier.training")
    parser.add_argument("folder", help="the job folder")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint")
    asked = parser.parse_args(arguments)
    folder = JobFolder(asked.folder)
    try:
        run_job(folder, asked.resume, Console(soft_wrap=False))
    except LuthierError as error:
        write_failure(folder, str(error))
        raise
    except Exception as error:
        write_failure(folder, f"AlgorithmError: {type(error).__name__}: {error}")
        raise


def write_failure(folder: JobFolder, reason: str) -> None:
    """output/failure: at most 1,024 characters reach SageMaker's FailureReason."""
    if folder.config.is_dir():
        folder.output.mkdir(exist_ok=True)
        folder.failure.write_text(reason[:1024] + "\n", "utf-8")


if __name__ == "__main__":
    door.run(lambda: main(sys.argv[1:]))
