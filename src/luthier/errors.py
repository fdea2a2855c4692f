"""Every error that a user can meet, as one tree.

    LuthierError                     exit 1   InternalFailure
    ├── UserError                    exit 2   ValidationException    the caller can fix it
    │   ├── DataError                exit 2   ValidationException    a file, a row or a field is wrong
    │   ├── SettingError             exit 2   ValidationException    a hyperparameter or an option is wrong
    │   ├── ModelNotFoundError       exit 2   ResourceNotFound       the base model was not found
    │   ├── EulaError                exit 2   ValidationException    the licence was not accepted
    │   └── RunFolderError           exit 2   ResourceInUse          the run folder cannot be used for this run
    ├── CapacityError                exit 1   ResourceLimitExceeded  not enough disk or memory
    ├── ObjectStoreUnreachableError  exit 1   InternalFailure        the external object store fails; retry later
    ├── CheckpointError              exit 1   InternalFailure        a checkpoint is needed and none is readable
    ├── NoGeneratedTextError         exit 1   InternalFailure        a model generated nothing that could be scored
    └── Interrupted                  exit 130 InternalFailure        stopped by the user; can be resumed

Each message is one line: where (file, line, field), what was found, what was expected, how to fix it.
The command line prints it without a traceback and exits with `exit_code`; the wire answers with `wire_code`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass


class LuthierError(Exception):
    """Root of the tree; caught once, in entrypoint.py."""

    exit_code = 1
    wire_code = "InternalFailure"


class UserError(LuthierError):
    """The request or its input is wrong; the caller can fix it."""

    exit_code = 2
    wire_code = "ValidationException"


class NoObjectsError(UserError):
    """No object is at an address, or below it."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One fault in the data: its place and how to fix it.

    `file` is relative to its channel; `line` counts from 1 and is 0 for a fault of the whole file.
    """

    file: str
    line: int
    message: str
    field: str = ""

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else self.file
        return f"{where}: {self.message}" if where else self.message


class DataError(UserError):
    """The data cannot be used for training; `problems` lists every fault found."""

    def __init__(self, problems: Problem | Iterable[Problem]) -> None:
        self.problems = [problems] if isinstance(problems, Problem) else list(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class SettingError(UserError):
    """A hyperparameter or an option is unknown, malformed or out of range."""


class ModelNotFoundError(UserError):
    """A base model was found neither in the catalogue, nor in a folder, nor on the Hub."""

    wire_code = "ResourceNotFound"


class EulaError(UserError):
    """The request names a gated model without accepting its licence."""


class RunFolderError(UserError):
    """A run folder is in use, is not empty, has a newer format, or belongs to another run."""

    wire_code = "ResourceInUse"


class CapacityError(LuthierError):
    """Not enough disk or memory; checked before work starts where possible."""

    wire_code = "ResourceLimitExceeded"


class ObjectStoreUnreachableError(LuthierError):
    """The external object store does not answer or reports a temporary fault; a retry may succeed."""


class CheckpointError(LuthierError):
    """No checkpoint of the run is readable."""


class NoGeneratedTextError(LuthierError):
    """A model generated an empty text for every row, so that there is nothing to compare."""


class Interrupted(LuthierError):
    """The user stopped the run; its checkpoint was written."""

    exit_code = 130


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """Return ``; did you mean 'x'?`` for the closest known name, or an empty string if none has `cutoff` in common.

    A name that is close as it is written comes before one that is close in another case.
    """
    names = list(known)
    folded = {candidate.lower(): candidate for candidate in names}
    close = difflib.get_close_matches(name, names, n=1, cutoff=cutoff)
    close = close or [folded[key] for key in difflib.get_close_matches(name.lower(), folded, n=1, cutoff=cutoff)]
    return f"; did you mean {close[0]!r}?" if close else ""
