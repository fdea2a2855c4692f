"""Decides how long a failing operation is retried: an unreachable store for minutes, unexpected errors a few times.

The user's errors and a full disk are not retried.
"""

from __future__ import annotations

import time

from luthier.errors import LuthierError, ObjectStoreUnreachableError
from luthier.supervisor.failure import is_disk_full

UNREACHABLE_SECONDS = 600.0  # from the first failure on
MAX_WAIT = 30.0  # seconds between attempts
MAX_ATTEMPTS = 3  # for failures that are neither the user's nor the network's


class RetryPolicy:
    """The consecutive failures of one operation, and the time of its next attempt."""

    def __init__(self) -> None:
        self.failures = 0
        self._first_failure = self._next_attempt = 0.0

    @property
    def is_waiting(self) -> bool:
        """Whether it is too early for the next attempt."""
        return time.monotonic() < self._next_attempt

    def reset(self) -> None:
        """Forget all failures, after a success."""
        self.failures = 0

    def should_retry(self, error: Exception) -> bool:
        """Record a failure; return whether to retry once `is_waiting` is False."""
        now = time.monotonic()
        self._first_failure = self._first_failure if self.failures else now
        self.failures += 1
        if isinstance(error, ObjectStoreUnreachableError):
            self._next_attempt = now + min(MAX_WAIT, 2.0 ** (self.failures - 1))
            return now - self._first_failure < UNREACHABLE_SECONDS
        self._next_attempt = now + 4.0 ** (self.failures - 1)
        return not (isinstance(error, LuthierError) or is_disk_full(error)) and self.failures < MAX_ATTEMPTS

    def final_error(self, error: Exception) -> Exception:
        """The error to report when there is no further attempt."""
        if not isinstance(error, ObjectStoreUnreachableError):
            return error
        seconds = time.monotonic() - self._first_failure
        return ObjectStoreUnreachableError(f"{error}; it was tried {self.failures} times in {seconds:,.0f} seconds")
