"""A child process that runs as long as its parent: restarted when it ends, terminated when the parent exits."""

from __future__ import annotations

import logging
import subprocess
import threading
import time
from collections.abc import Callable

FIRST_DELAY, MAX_DELAY = 0.5, 30.0  # seconds before the next start; doubled each time
STEADY_SECONDS = 60.0  # of running, after which the delay is reset
_log = logging.getLogger(__name__)


class ChildProcess:
    """The program that `launch` starts, restarted by a thread when it ends. One `start` and one `stop`."""

    def __init__(self, name: str, launch: Callable[[], subprocess.Popen[bytes]]) -> None:
        self.name, self._launch = name, launch
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def pid(self) -> int | None:
        """The id of the running process; None if there is none."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def start(self) -> None:
        self._thread.start()

    def stop(self, seconds: float) -> None:
        """Terminate it (SIGTERM), and kill it after `seconds`. Returns when it has ended."""
        self._stopping.set()
        with self._lock:
            process = self._process
        if process is not None:
            process.terminate()
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                _log.warning("%s did not end within %g seconds; killing it", self.name, seconds)
                process.kill()
                process.wait()
        self._thread.join()

    def _run(self) -> None:
        delay = FIRST_DELAY
        while True:
            started = time.monotonic()
            with self._lock:
                if self._stopping.is_set():
                    return
                self._process = self._try_launch()
            code = self._process.wait() if self._process is not None else None
            if self._stopping.is_set():
                return
            delay = FIRST_DELAY if time.monotonic() - started > STEADY_SECONDS else min(2 * delay, MAX_DELAY)
            _log.error("%s ended with exit code %s; restarting it in %g seconds", self.name, code, delay)
            self._stopping.wait(delay)

    def _try_launch(self) -> subprocess.Popen[bytes] | None:
        try:
            return self._launch()
        except OSError:
            _log.exception("%s could not be started", self.name)
            return None
