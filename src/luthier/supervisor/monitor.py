"""Monitors one run of the engine: follows its log, reads its metrics, and detects that it stalls."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field

from luthier.launchers.launcher import Activity, ExitStatus, Launcher, RunHandle
from luthier.supervisor.folder import ServiceFolder
from luthier.supervisor.tail import EventLog

_log = logging.getLogger(__name__)
# A waiting process wakes up now and then; more than this counts as work:
IDLE_SHARE = 0.01  # of a core
IDLE_BYTES = 32_768  # read and written in a second: a model that is being downloaded moves more


@dataclass(slots=True, kw_only=True)
class RunMonitor:
    """Monitors the run `handle` on `folder`; its log lines go to `events`."""

    launcher: Launcher
    handle: RunHandle
    folder: ServiceFolder
    events: EventLog
    deadline: float | None = None  # when the run is killed; set by `request_stop`
    _written: tuple[float, ...] = ()
    _active_at: float = field(default_factory=time.monotonic)
    _checked_at: float = 0.0
    _activity: Activity = field(default_factory=Activity)

    def poll(self) -> ExitStatus | None:
        """Follow the log and return how the run ended, None while it runs. Kills it past its deadline."""
        status = self.launcher.poll(self.handle)
        if status is None and self.deadline is not None and time.monotonic() > self.deadline:
            self.launcher.kill(self.handle)
            status = self.launcher.poll(self.handle)
        try:
            while self.events.follow(last=status is not None):
                pass
        except OSError as error:  # a full disk; its log stays complete
            _log.warning("%s: cannot write its events: %s", self.folder.root.name, error)
        return status

    def request_stop(self, grace: float, *, finish: bool = False) -> None:
        """Ask the engine to stop and kill it after `grace` seconds; repeated calls have no effect.

        `finish`: it will not be resumed, so it writes what it has as the artifact.
        """
        if self.deadline is None:
            if finish:
                self.folder.job.finish_marker.touch()
            self.deadline = time.monotonic() + grace
            self.launcher.request_stop(self.handle)

    def idle_seconds(self, interval: float) -> float:
        """Seconds in which the engine has neither written nor computed; checked every `interval` seconds."""
        now = time.monotonic()
        if now - self._checked_at >= interval:
            self._checked_at = now
            written = tuple(self._stat_files())
            activity, before = self.launcher.activity(self.handle), self._activity
            seconds = now - self._active_at
            has_computed = abs(activity.cpu_seconds - before.cpu_seconds) > max(0.05, IDLE_SHARE * seconds)
            has_transferred = abs(activity.io_bytes - before.io_bytes) > IDLE_BYTES * max(1.0, seconds)
            if written != self._written or has_computed or has_transferred:
                self._written, self._activity, self._active_at = written, activity, now
        return now - self._active_at

    def _stat_files(self) -> list[float]:
        """File sizes and times, which change with each log line, metric, checkpoint and score."""
        job = self.folder.job
        stats = []
        for path in (self.folder.log, job.metrics_lines, job.checkpoints, job.scores, job.output, job.model):
            try:
                state = path.stat()
            except FileNotFoundError:
                continue
            stats += [float(state.st_size), state.st_mtime]
        return stats
