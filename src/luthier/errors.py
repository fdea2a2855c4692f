"""Every error a user can meet, as one tree.

    LuthierError                  exit 1   InternalFailure
    ├── UserError                 exit 2   ValidationException       the caller can fix it
    │   ├── DataError             exit 2   ValidationException       a file, a row or a field
    │   ├── SettingError          exit 2   ValidationException       a hyperparameter or an option
    │   ├── ModelNotFoundError    exit 2   ResourceNotFound          a model that is not to be had
    │   ├── EulaError             exit 2   ValidationException       a licence that was not accepted
    │   └── RunFolderError        exit 2   ResourceInUse             a run folder that cannot be used as asked
    ├── CapacityError             exit 1   ResourceLimitExceeded     disk or memory does not suffice
    ├── UnreachableError          exit 1   InternalFailure           a store elsewhere that does not answer now
    ├── CheckpointError           exit 1   InternalFailure           no readable checkpoint where one is needed
    └── Interrupted               exit 130 InternalFailure           stopped by the user, can be resumed

Each message is one clear line: where (file, line, field), what was found, what was expected, how to fix it.
The command line prints it without a traceback and exits with `exit_code`; the wire answers with `wire_code`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass


class LuthierError(Exception):
    """Root of the tree; caught once, at each program's outermost door."""

    exit_code = 1
    wire_code = "InternalFailure"


class UserError(LuthierError):
    """Something the caller asked for or supplied is wrong."""

    exit_code = 2
    wire_code = "ValidationException"


@dataclass(frozen=True, slots=True)
class Problem:
    """One fault in the data: where it is and what to do about it.

    `file` is relative to its channel; `line` counts from 1, 0 when the fault is of the whole file.
    """

    file: str
    line: int
    message: str
    field: str = ""

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else self.file
        return f"{where}: {self.message}" if where else self.message


class DataError(UserError):
    """The data cannot be trained on as it is; `problems` lists every fault that was found."""

    def __init__(self, problems: Problem | Iterable[Problem]) -> None:
        self.problems = [problems] if isinstance(problems, Problem) else list(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class SettingError(UserError):
    """A hyperparameter or an option is unknown, malformed or out of range."""


class ModelNotFoundError(UserError):
    """A base model is neither in the catalogue, nor in a folder, nor to be had from the Hub."""

    wire_code = "ResourceNotFound"


class EulaError(UserError):
    """A gated model was asked for without accepting its licence."""


class RunFolderError(UserError):
    """A run folder is in use, not empty, of a newer format, or does not belong to the run asked for."""

    wire_code = "ResourceInUse"


class CapacityError(LuthierError):
    """Disk or memory does not suffice; checked before work starts wherever it can be."""

    wire_code = "ResourceLimitExceeded"


class UnreachableError(LuthierError):
    """A store elsewhere does not answer, or says that it cannot now; later it may."""


class CheckpointError(LuthierError):
    """No checkpoint of a run can be read."""


class Interrupted(LuthierError):
    """The user stopped the run; its checkpoint was written."""

    exit_code = 130


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``; did you mean 'x'?`` for the closest known name, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""
