"""How long a failing operation is retried: an unreachable store for minutes, our own faults a few times.

What the user has to change, and a full disk, are not retried. Knows errors and times, nothing of the operation.
"""

from __future__ import annotations

import time

from luthier.errors import LuthierError, ObjectStoreUnreachableError
from luthier.supervisor.failure import is_disk_full

UNREACHABLE_SECONDS = 600.0  # from its first failure, in which an external store has to answer again
LONGEST_WAIT = 30.0
MAX_ATTEMPTS = 3  # for a failure that is neither the user's nor the network's


class RetryPolicy:
    """The consecutive failures of one operation, and when it may be tried again."""

    def __init__(self) -> None:
        self.failures = 0
        self._first_failure = self._next_attempt = 0.0

    @property
    def is_waiting(self) -> bool:
        """Whether it is too early for the next attempt."""
        return time.monotonic() < self._next_attempt

    def reset(self) -> None:
        """The operation succeeded: the next failure counts as the first."""
        self.failures = 0

    def should_retry(self, error: Exception) -> bool:
        """Record a failure; whether to try again once `is_waiting` is False."""
        now = time.monotonic()
        self._first_failure = self._first_failure if self.failures else now
        self.failures += 1
        if isinstance(error, ObjectStoreUnreachableError):
            self._next_attempt = now + min(LONGEST_WAIT, 2.0 ** (self.failures - 1))
            return now - self._first_failure < UNREACHABLE_SECONDS
        self._next_attempt = now + 4.0 ** (self.failures - 1)
        return not (isinstance(error, LuthierError) or is_disk_full(error)) and self.failures < MAX_ATTEMPTS

    def final_error(self, error: Exception) -> Exception:
        """The error to report once the operation is not retried any more."""
        if not isinstance(error, ObjectStoreUnreachableError):
            return error
        seconds = time.monotonic() - self._first_failure
        return ObjectStoreUnreachableError(f"{error}; it was tried {self.failures} times in {seconds:,.0f} seconds")
