"""How long something that fails is tried again: a store that does not answer for a while, our own faults a few times.

What the user has to change, and a full disk, are not tried again. Knows errors and times, nothing of what is tried.
"""

from __future__ import annotations

import time

from luthier.errors import LuthierError, ObjectStoreUnreachableError
from luthier.supervisor import ending

UNREACHABLE_SECONDS = 600.0  # from its first failure on, that a store elsewhere has to answer again
LONGEST_WAIT = 30.0
TRIES = 3  # of what fails for another reason that is none of the user's


class Patience:
    """The failures in a row of one piece of work."""

    def __init__(self) -> None:
        self.failures = 0
        self._first = self._next = 0.0

    @property
    def waits(self) -> bool:
        """Whether it is too early to try again."""
        return time.monotonic() < self._next

    def succeeded(self) -> None:
        """What fails from now on is the first failure."""
        self.failures = 0

    def again(self, error: Exception) -> bool:
        """Whether to try again after this failure, once `waits` is over."""
        now = time.monotonic()
        self._first = self._first if self.failures else now
        self.failures += 1
        if isinstance(error, ObjectStoreUnreachableError):
            self._next = now + min(LONGEST_WAIT, 2.0 ** (self.failures - 1))
            return now - self._first < UNREACHABLE_SECONDS
        self._next = now + 4.0 ** (self.failures - 1)
        return not (isinstance(error, LuthierError) or ending.disk_full(error)) and self.failures < TRIES

    def final(self, error: Exception) -> Exception:
        """The error to end with when it is not tried again."""
        if not isinstance(error, ObjectStoreUnreachableError):
            return error
        seconds = time.monotonic() - self._first
        return ObjectStoreUnreachableError(f"{error}; it was tried {self.failures} times in {seconds:,.0f} seconds")
