"""Runs blocking work (disk, network) in threads, so that the supervisor's loop does not wait for it."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Transfer:
    """Work in its own daemon thread, which may be abandoned; the work must be repeatable."""

    def __init__(self, work: Callable[[], None], name: str) -> None:
        self._work = work
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._work()
        except Exception as error:  # read by the caller
            self.error = error

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def join(self, seconds: float | None = None) -> None:
        self._thread.join(seconds)
