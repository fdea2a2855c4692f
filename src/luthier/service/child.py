"""A program of ours that runs as long as we do: started again when it ends, asked to end when we do.

Knows nothing of what the program does.
"""

from __future__ import annotations

import logging
import subprocess
import threading
import time
from collections.abc import Callable

FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0  # seconds before the next start; doubled each time
STEADY_SECONDS = 60.0  # that it has to run for the waits to start over
_log = logging.getLogger(__name__)


class Child:
    """The program that `launch` starts, kept running by a thread of its own. One `start` and one `stop`."""

    def __init__(self, name: str, launch: Callable[[], subprocess.Popen[bytes]]) -> None:
        self.name, self._launch = name, launch
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._keep, name=name, daemon=True)

    @property
    def pid(self) -> int | None:
        """The running process; None between two of them."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def start(self) -> None:
        self._thread.start()

    def stop(self, seconds: float) -> None:
        """Ask it to end (SIGTERM), and end it when it has not within `seconds`. Returns when it is gone."""
        self._stopping.set()
        with self._lock:
            process = self._process
        if process is not None:
            process.terminate()
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                _log.warning("%s did not end within %g seconds and is killed", self.name, seconds)
                process.kill()
                process.wait()
        self._thread.join()

    def _keep(self) -> None:
        wait = FIRST_WAIT
        while True:
            started = time.monotonic()
            with self._lock:
                if self._stopping.is_set():
                    return
                self._process = self._started()
            code = self._process.wait() if self._process is not None else None
            if self._stopping.is_set():
                return
            wait = FIRST_WAIT if time.monotonic() - started > STEADY_SECONDS else min(2 * wait, LONGEST_WAIT)
            _log.error("%s ended with exit code %s; starting it again in %g seconds", self.name, code, wait)
            self._stopping.wait(wait)

    def _started(self) -> subprocess.Popen[bytes] | None:
        try:
            return self._launch()
        except OSError:
            _log.exception("%s could not be started", self.name)
            return None
