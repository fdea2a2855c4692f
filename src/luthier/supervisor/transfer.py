"""Work that waits for disks and networks, done beside the loop so that nothing else has to wait for it."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Transfer:
    """One piece of work in a thread of its own. It is a daemon: it may be left behind, and must be repeatable."""

    def __init__(self, work: Callable[[], None], name: str) -> None:
        self._work = work
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._work()
        except Exception as error:  # handed to whoever asks for the outcome
            self.error = error

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def join(self, seconds: float | None = None) -> None:
        self._thread.join(seconds)
