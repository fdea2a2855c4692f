"""The FailureReason of a job, written for its user.

SageMaker's prefixes name what failed: ClientError the request (rows, settings), AlgorithmError the engine,
InternalServerError the service or its machine: memory or threads ran out, the engine was killed or reached a limit.
"""

from __future__ import annotations

import errno
import shutil

from luthier.errors import CapacityError, LuthierError, ObjectStoreUnreachableError, UserError
from luthier.exhaustion import describe_exhaustion
from luthier.jobfolder import shorten_failure
from luthier.launchers.launcher import ExitStatus
from luthier.supervisor.folder import ServiceFolder

INTERRUPTED = 130  # the engine's exit code after a SIGTERM that it handled
RESUMABLE = "--resume continues from it"  # ends the reasons of resumable failures, see training/launch.py
_FULL = 64 << 20  # bytes of free space, below which a disk counts as full
_PREFIXES = ("ClientError:", "AlgorithmError:", "InternalServerError:")
_SIGNALS = {
    "SIGKILL": "killed (SIGKILL), as the kernel does with the largest process when memory runs out",
    "SIGBUS": "killed by a memory fault (SIGBUS), as happens when the disk or shared memory is full",
    "SIGSEGV": "killed by a memory fault (SIGSEGV) in native code",
    "SIGABRT": "aborted (SIGABRT) by native code",
    "SIGXCPU": "killed for using more processor time than its limit, --limit cpu-seconds (SIGXCPU)",
    "SIGXFSZ": "killed for writing a file over its limit, --limit file-size (SIGXFSZ)",
}
_NATIVE = ("SIGSEGV", "SIGABRT", "SIGILL", "SIGFPE")  # from the engine's own code, unless memory or threads ran out


def is_interrupted(status: ExitStatus) -> bool:
    """Whether a signal ended the engine, rather than its own failure."""
    return bool(status.signal) or status.code == INTERRUPTED


def has_lost_rank(folder: ServiceFolder) -> bool:
    """Whether the engine failed because one of several ranks was killed or became unreachable."""
    return RESUMABLE in _engine_reason(folder)


def _engine_reason(folder: ServiceFolder) -> str:
    try:
        return folder.job.failure.read_text("utf-8", "replace").strip()
    except FileNotFoundError:
        return ""


def engine_failure(folder: ServiceFolder, status: ExitStatus, last_line: str) -> str:
    """Why the engine ended with `status` before its work was done."""
    last_line = last_line or "(none)"
    if is_interrupted(status):
        full = "; its disk is full" if shutil.disk_usage(folder.root).free < _FULL else ""
        cause = describe_signal(status)
        exhausted = describe_exhaustion(last_line)
        prefix = "AlgorithmError" if status.signal in _NATIVE and not exhausted else "InternalServerError"
        cause += f" ({exhausted})" if exhausted else ""
        return _truncate(f"{prefix}: the engine was {cause}{full}; the last line of its log: {last_line}")
    reason = _engine_reason(folder)
    if not reason and (exhausted := describe_exhaustion(last_line)):
        reason = f"InternalServerError: {exhausted}; the last line of the engine's log: {last_line}"
    if not reason:
        reason = (
            f"the engine ended with exit code {status.code} and gave no reason; the last line of its log: {last_line}"
        )
    if not reason.startswith(_PREFIXES):
        fault = "InternalServerError" if describe_exhaustion(reason) else "AlgorithmError"
        reason = f"{'ClientError' if status.code == UserError.exit_code else fault}: {reason}"
    if "No space left on device" in reason or f"[Errno {errno.ENOSPC}]" in reason:
        reason += f"; the disk that holds {folder.root} is full: free some space, and start the job again"
    return _truncate(reason)


def describe_signal(status: ExitStatus) -> str:
    """What a signal did to a process, in words."""
    if not status.signal:
        return "stopped by a signal that the supervisor did not send"
    return _SIGNALS.get(status.signal, f"ended by {status.signal}")


def stall_failure(seconds: float) -> str:
    return (
        f"AlgorithmError: the engine made no progress for {seconds:,.0f} seconds: no line in its log, no metric, no "
        "checkpoint and no processor time; it was stopped. Its checkpoints and log are kept"
    )


def is_disk_full(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno == errno.ENOSPC


def service_failure(error: BaseException) -> str:
    """The reason of a failed download, launch or upload."""
    text = " ".join(str(error).split()) or type(error).__name__
    if is_disk_full(error):
        text = f"InternalServerError: the disk is full: {text}; free some space, and start the job again"
    elif isinstance(error, CapacityError | ObjectStoreUnreachableError):
        text = f"InternalServerError: {text}"
    elif isinstance(error, LuthierError):
        text = text if text.startswith(_PREFIXES) else f"ClientError: {text}"
    else:
        text = f"InternalServerError: {type(error).__name__}: {text}; the supervisor's log has the details"
    return _truncate(text)


def _truncate(text: str) -> str:
    text = " ".join(text.split()) if "\n" not in text else text
    return shorten_failure(text)
