"""How an engine ended, in words that its user understands: the FailureReason of a job.

SageMaker's prefixes tell whose turn it is: ClientError the user's (rows, settings), AlgorithmError the engine's,
InternalServerError ours.
"""

from __future__ import annotations

import errno
import shutil
import signal
from pathlib import Path

from luthier.errors import CapacityError, LuthierError, ObjectStoreUnreachableError, UserError
from luthier.supervisor.folder import ServiceFolder

LONGEST = 1024
INTERRUPTED = 130  # the engine's exit code after a SIGTERM that it heard
RESUMABLE = "--resume continues from it"  # how training/launch.py ends the reasons that are of this kind
_FULL = 64 << 20  # bytes; less is as good as none
_PREFIXES = ("ClientError:", "AlgorithmError:", "InternalServerError:")


def by_signal(code: int) -> bool:
    """Whether an exit code says that the engine was ended, rather than ended by itself."""
    return code < 0 or code == INTERRUPTED


def lost_a_rank(folder: ServiceFolder) -> bool:
    """Whether the engine ended because one of several ranks was killed, or could not be reached any more."""
    return RESUMABLE in _said(folder)


def _said(folder: ServiceFolder) -> str:
    try:
        return folder.job.failure.read_text("utf-8", "replace").strip()
    except FileNotFoundError:
        return ""


def reason(folder: ServiceFolder, code: int, last_line: str) -> str:
    """Why the engine ended with `code` before its work was done."""
    if by_signal(code):
        return _bounded(f"AlgorithmError: the engine was {how(code)}{_disk(folder.root)}; the last line of its log: "
                        f"{last_line or '(none)'}")  # fmt: skip
    said = _said(folder)
    if not said:
        said = f"the engine ended with exit code {code} and gave no reason; the last line of its log: "
        said += last_line or "(none)"
    if not said.startswith(_PREFIXES):
        said = f"{'ClientError' if code == UserError.exit_code else 'AlgorithmError'}: {said}"
    if "No space left on device" in said or f"[Errno {errno.ENOSPC}]" in said:
        said += f"; the disk that holds {folder.root} is full: make room, and start the job again"
    return _bounded(said)


def how(code: int) -> str:
    """A death by signal in words."""
    if code == INTERRUPTED:
        return "stopped by somebody else's signal"
    name = signal.Signals(-code).name if -code in list(signal.Signals) else f"signal {-code}"
    meanings = {
        "SIGKILL": "killed (SIGKILL), as the kernel does with the largest process when memory runs out",
        "SIGBUS": "killed by a memory fault (SIGBUS), as happens when the disk or shared memory is full",
        "SIGSEGV": "killed by a memory fault (SIGSEGV) in native code",
        "SIGABRT": "aborted (SIGABRT) by native code",
        "SIGXCPU": "killed for using more processor time than its limit (SIGXCPU)",
        "SIGXFSZ": "killed for writing a file over its limit (SIGXFSZ)",
    }
    return meanings.get(name, f"ended by {name}")


def stalled(seconds: float) -> str:
    return (
        f"AlgorithmError: the engine made no progress for {seconds:,.0f} seconds: no line in its log, no metric, no "
        "checkpoint and no processor time; it was ended. Its checkpoints and log are kept"
    )


def disk_full(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno == errno.ENOSPC


def of_fault(error: BaseException) -> str:
    """What went wrong on our side, in downloading, launching or uploading."""
    text = " ".join(str(error).split()) or type(error).__name__
    if disk_full(error):
        return _bounded(f"InternalServerError: the disk is full: {text}; make room, and start the job again")
    if isinstance(error, (CapacityError, ObjectStoreUnreachableError)):
        return _bounded(f"InternalServerError: {text}")
    if isinstance(error, LuthierError):
        return _bounded(text if text.startswith(_PREFIXES) else f"ClientError: {text}")
    return _bounded(f"InternalServerError: {type(error).__name__}: {text}; the supervisor's log has the details")


def _disk(folder: Path) -> str:
    return "; its disk is full" if shutil.disk_usage(folder).free < _FULL else ""


def _bounded(text: str) -> str:
    text = " ".join(text.split()) if "\n" not in text else text
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 4]} ..."
