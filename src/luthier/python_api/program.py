"""An engine program run from Python: its output captured, its error raised again as an exception of this process."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from luthier import errors
from luthier.allocator import preload
from luthier.cli.app import resolve
from luthier.cli.program import Program
from luthier.entrypoint import END_WITH_PARENT, ERROR_FILE
from luthier.errors import DataError, Interrupted, LuthierError, Problem

POLL_SECONDS = 0.1


def command(name: str, *arguments: str | Path, flags: Sequence[str] = (), **options: Any) -> Program:
    """The engine program that `luthier NAME ARGUMENTS --OPTION VALUE ...` runs, checked by the command line's parser.

    None and False leave an option at its default; True sets a flag. UserError as on the command line.
    """
    words = [name, *flags]
    for option, value in options.items():
        if value is not None and value is not False:
            words += [f"--{option.replace('_', '-')}", *([] if value is True else [str(value)])]
    program = resolve([*words, "--", *map(str, arguments)])
    assert isinstance(program, Program), f"luthier {name} is not run by an engine program"
    return program


def set_options(hyperparameters: dict[str, Any]) -> list[str]:
    """Hyperparameters as the command line's --set options."""
    return [word for name, value in hyperparameters.items() for word in ("--set", f"{name}={value}")]


def run_program(program: Program, verbose: bool = False, on_poll: Callable[[str], None] = lambda line: None) -> str:
    """Run `program` to its end; return what it wrote to standard output.

    `verbose` passes its output on while it runs. `on_poll` gets the last line written, about ten times a second.
    Raises the program's own error. A KeyboardInterrupt asks it to stop; training then writes a checkpoint first.
    """
    with tempfile.TemporaryDirectory() as folder:
        output, error_file = Path(folder) / "output", Path(folder) / "error.json"
        with (
            _started(program, output, error_file) as process,
            open(output, encoding="utf-8", errors="replace") as reader,
        ):
            code = _wait(process, lambda: _follow(reader, verbose, on_poll))
            _follow(reader, verbose, on_poll)
        if code:
            raise _error(error_file, code, output)
        return output.read_text("utf-8", "replace")


@contextlib.contextmanager
def _started(program: Program, output: Path, error_file: Path) -> Iterator[subprocess.Popen[bytes]]:
    # A session of its own: Ctrl-C in a terminal or a notebook reaches the program once, from here.
    environment = {**os.environ, **preload(os.environ), ERROR_FILE: str(error_file), END_WITH_PARENT: str(os.getpid())}
    environment["PYTHONIOENCODING"] = "utf-8"
    with tempfile.TemporaryFile() as request, open(output, "wb") as written, open(f"{output}.notes", "wb") as notes:
        request.write(json.dumps(program.request).encode() if program.request is not None else b"")
        request.seek(0)
        process = subprocess.Popen(
            program.argv, stdin=request, stdout=written, stderr=notes, env=environment, start_new_session=True
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def _wait(process: subprocess.Popen[bytes], poll: Callable[[], None]) -> int:
    """Poll until the program ends; the first KeyboardInterrupt asks it to stop, the second one kills it."""
    interrupted = False
    while True:
        try:
            while process.poll() is None:
                poll()
                time.sleep(POLL_SECONDS)
            return int(process.returncode)
        except KeyboardInterrupt:
            if interrupted:
                raise
            interrupted = True
            process.send_signal(signal.SIGINT)


def _follow(reader: IO[str], verbose: bool, on_poll: Callable[[str], None]) -> None:
    text = reader.read()
    if verbose and text:
        sys.stdout.write(text)
        sys.stdout.flush()
    lines = text.strip().splitlines()
    on_poll(lines[-1].strip() if lines else "")


def _error(error_file: Path, code: int, output: Path) -> LuthierError:
    """The error that the program left in `error_file`, as an instance of its class in the error tree."""
    if not error_file.exists():
        if code == Interrupted.exit_code:
            return Interrupted("stopped before the first checkpoint")
        notes = Path(f"{output}.notes").read_text("utf-8", "replace").strip().splitlines()
        ended = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return LuthierError(f"the engine {ended}" + (f": {notes[-1]}" if notes else ""))
    stored = json.loads(error_file.read_text("utf-8"))
    if stored["problems"]:
        return DataError(Problem(**problem) for problem in stored["problems"])
    classes = (getattr(errors, name, None) for name in stored["classes"])
    error_class = next(found for found in classes if isinstance(found, type) and issubclass(found, LuthierError))
    return error_class(stored["message"])
