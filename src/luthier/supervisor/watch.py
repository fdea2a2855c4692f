"""An engine at work: its log followed, its numbers read, and whether it moves at all."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field

from luthier.launchers.process import Effort, Running
from luthier.supervisor.folder import ServiceFolder
from luthier.supervisor.metrics import Curve
from luthier.supervisor.tail import EventLog

_log = logging.getLogger(__name__)
# A process that waits for ever still wakes up now and then. What is more counts as work:
IDLE_SHARE = 0.01  # of a core
IDLE_BYTES = 32_768  # read and written in a second: a model that is being downloaded moves more


@dataclass(slots=True)
class Watch:
    """`running` works for `folder`; `events` and `curve` take in what it writes."""

    running: Running
    folder: ServiceFolder
    events: EventLog
    curve: Curve
    deadline: float | None = None  # when it is killed, once it was asked to end
    _traces: tuple[float, ...] = ()
    _moved: float = field(default_factory=time.monotonic)
    _looked: float = 0.0
    _effort: Effort = field(default_factory=lambda: Effort(0.0, 0))

    def look(self) -> int | None:
        """Take in what the engine wrote; return its exit code, None while it runs. Kills it past its deadline."""
        code = self.running.poll()
        if code is None and self.deadline is not None and time.monotonic() > self.deadline:
            self.running.kill()
            code = self.running.poll()
        try:
            while self.events.follow(last=code is not None):
                pass
        except OSError as error:  # a full disk; the engine meets it too, and its log is whole
            _log.warning("%s: its events cannot be written: %s", self.folder.root.name, error)
        return code

    def ask(self, patience: float) -> None:
        """Ask the engine to end, and give it `patience` seconds for its checkpoint; asked once, however often."""
        if self.deadline is None:
            self.deadline = time.monotonic() + patience
            self.running.ask()

    def idle_seconds(self, precision: float) -> float:
        """For how long the engine has neither written anything nor worked; looked up every `precision` seconds."""
        now = time.monotonic()
        if now - self._looked >= precision:
            self._looked = now
            traces = tuple(self._written())
            effort, before = self.running.effort(), self._effort
            computed = abs(effort.seconds - before.seconds) > max(0.05, IDLE_SHARE * (now - self._moved))
            transferred = abs(effort.moved - before.moved) > IDLE_BYTES * max(1.0, now - self._moved)
            if traces != self._traces or computed or transferred:
                self._traces, self._effort, self._moved = traces, effort, now
        return now - self._moved

    def _written(self) -> list[float]:
        """Sizes and times that change with every line of log, every metric, every checkpoint and every score."""
        job = self.folder.job
        found = []
        for path in (self.folder.log, job.metrics_lines, job.checkpoints, job.scores, job.output, job.model):
            try:
                state = path.stat()
            except FileNotFoundError:
                continue
            found += [float(state.st_size), state.st_mtime]
        return found
