"""Runs one job from the queue to its end: stages are repeatable, and each is recorded before the next begins.

    prepare ─► download ─► train ─► upload ─► finish
                  │          │                   ▲
                  └──────────┴─ stopped, failed ─┘

A stage is a method that never waits, and returns whether the next step can follow at once.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from luthier.catalog.entry import find, reads_pairs
from luthier.errors import LuthierError
from luthier.jobs.progress import MESSAGES, TrainingProgress
from luthier.jobs.resource import Resource
from luthier.jobs.states import IllegalMoveError
from luthier.jobs.store import GoneError
from luthier.launchers.launcher import ExitStatus
from luthier.supervisor import collect, failure, metrics
from luthier.supervisor.checkpoint_sync import CheckpointUploads, download_checkpoints
from luthier.supervisor.context import SupervisorContext
from luthier.supervisor.folder import ServiceFolder
from luthier.supervisor.layout import engine_device, lay_out
from luthier.supervisor.metrics import MetricsReader
from luthier.supervisor.monitor import RunMonitor
from luthier.supervisor.retry import RetryPolicy
from luthier.supervisor.tail import EventLog
from luthier.supervisor.transfer import Transfer

PUBLISH_SECONDS = 2.0  # between two updates of a running job's metrics in the store
SAVE_SECONDS = 5.0  # between two writes of the time spent on a job
SECONDARY_STATUSES: Mapping[str, str] = {  # by stage
    "prepare": "Starting",
    "download": "Downloading",
    "train": "Training",
    "upload": "Uploading",
}
_log = logging.getLogger(__name__)


class JobWork:
    """The work on one job that this supervisor holds."""

    def __init__(self, resource: Resource, context: SupervisorContext) -> None:
        self.resource = resource
        self.context = context
        self.folder = ServiceFolder(context.settings.jobs / resource.id)
        self.events = EventLog(self.folder.log, self.folder.events)
        self.metrics_reader = MetricsReader(self.folder.job.metrics_lines)
        self.is_over = False
        self._monitor: RunMonitor | None = None
        self._transfer: Transfer | None = None
        self._retry = RetryPolicy()
        self._objects = context.objects_for(resource)
        self._checkpoint_uploads = CheckpointUploads(
            self._objects, resource.job.checkpoints, self.folder.job.checkpoints, self._log_event
        )
        self._since = self._published = time.monotonic()
        self._stages: Mapping[str, Callable[[], bool]] = {
            "prepare": self._prepare, "download": self._download, "train": self._train, "upload": self._upload,
            "finish": self._finish,
        }  # fmt: skip

    def step(self, resource: Resource | None) -> bool:
        """Continue without waiting; True when the job needs no supervisor any more.

        `resource` is the job's current row in the store; None when it was deleted or taken over.
        """
        if resource is None:
            self.kill()
            return True
        self.resource = resource
        try:
            while not self.is_over and self._stages[self.folder.state.stage]():
                pass
        except (GoneError, IllegalMoveError) as error:
            _log.warning("%s %s: %s", resource.kind, resource.name, error)
            self.kill()
            return True
        except SQLAlchemyError:
            raise  # the stage is repeated once the database is reachable
        except Exception as error:
            if not isinstance(error, LuthierError):
                _log.exception("%s %s: stage %s", resource.kind, resource.name, self.folder.state.stage)
            if self.folder.state.status == "Failed":
                raise  # not even the failure can be stored: the loop tries again
            self.folder.state.artifact = ""
            self._fail(failure.service_failure(error))
        return self.is_over

    @property
    def needs_device(self) -> bool:
        """Whether the engine has work left."""
        return self.folder.state.stage in ("prepare", "download", "train")

    # Stages

    def _prepare(self) -> bool:
        if self._is_stop_requested:
            return self._decide("Stopped")
        self.folder.create(self.resource.request)
        self._publish()
        return self._advance("download")

    def _download(self) -> bool:
        if self._is_stop_requested:
            return self._decide("Stopped")
        device = self.context.devices.acquire(self.resource.id)
        if device is None:
            return False
        self._publish()
        if not self._is_done(lambda: self._lay_out(device)):
            return self._is_past_limit() and self._decide("Stopped", "MaxRuntimeExceeded")
        return self._advance("train")

    def _lay_out(self, device: str) -> None:
        spec, folder, objects = self.resource.job, self.folder, self._objects
        lay_out(folder, spec, objects, device)
        if spec.checkpoints and not folder.job.split.exists():
            count = download_checkpoints(objects, spec.checkpoints, folder.job.checkpoints)
            self._log_event(
                f"{count} checkpoints found at {spec.checkpoints}" + ("; going on from them" if count else "")
            )

    def _train(self) -> bool:
        if self._monitor is None:
            if not self._is_collected():  # an engine that an earlier supervisor started
                return False
            while self.events.follow(last=True):
                pass
            if self.folder.is_finished:
                self.context.devices.release(self.resource.id)
                return self._advance("upload")
            if self.folder.state.stop_reason or self._is_stop_requested:
                return self._finish_training() if self._can_finish else self._stopped_early()
            return self._launch()
        status = self._monitor.poll()
        new = self.metrics_reader.read()
        self._checkpoint_uploads.poll()
        if status is not None:
            return self._engine_ended(status)
        if self._is_stop_requested:
            self._stop_engine("requested", "the job was asked to stop")
        elif self._is_past_limit():
            self._stop_engine("max_runtime", f"the job reached {self.resource.job.max_seconds_member}")
        elif self._is_stalled():
            self._stop_engine("stalled", "the engine makes no progress")
        elif new and time.monotonic() - self._published > PUBLISH_SECONDS:
            self._publish(self._current_metrics())
        return False

    def _upload(self) -> bool:
        self._publish()
        spec, folder, objects = self.resource.job, self.folder, self._objects
        if not self._checkpoint_uploads.poll() and not self._checkpoint_uploads.has_failed:
            return False
        if not self._is_done(lambda: collect.upload(folder, spec, objects)):
            return False
        self.folder.state.artifact = spec.artifact
        if self._is_stop_requested:
            return self._decide("Stopped")
        if self.folder.state.stop_reason == "max_runtime":
            return self._decide("Stopped", "MaxRuntimeExceeded")
        return self._decide("Completed")

    def _finish(self) -> bool:
        state, now = self.folder.state, time.time()
        message = state.failure or self._warning_message(state.secondary)
        progress = self.resource.training.with_transition(state.secondary, now, message)
        progress = replace(progress, started=progress.started or now, ended=now, failure=state.failure)
        if state.artifact:
            progress = self._with_results(progress)
            collect.sweep(self.folder)
        self._update(state.status, state.secondary, {one.name: getattr(progress, one.name) for one in fields(progress)})
        self.context.devices.release(self.resource.id)
        self.is_over = True
        return False

    def _warning_message(self, secondary: str) -> str:
        """The last transition's message for a job that warned of something; "" for its usual one."""
        warnings = self.folder.job.read_warnings()
        return f"{MESSAGES.get(secondary, secondary)}; warnings: {'; '.join(warnings)}" if warnings else ""

    # The engine

    def _launch(self) -> bool:
        device = self.context.devices.acquire(self.resource.id)
        if device is None:
            return False
        self._publish()
        self.folder.job.set_device(engine_device(device))
        resume = self.folder.job.split.exists() or self.folder.job.checkpoints.exists()
        launcher = self.context.launcher
        handle = launcher.start(self.context.training_spec(self.folder.root, device, resume))
        self.folder.state.handle = handle
        self._monitor = RunMonitor(launcher=launcher, handle=handle, folder=self.folder, events=self.events)
        self._save()
        return False

    def _stop_engine(self, reason: str, text: str) -> None:
        assert self._monitor is not None
        if not self.folder.state.stop_reason:
            if reason != "stalled":
                move = "Stopping" if reason == "max_runtime" else None  # a requested stop has already moved it
                transitions = self.resource.training.with_transition("Stopping", time.time()).transitions
                self._update(move, move, {"transitions": transitions})
            self.folder.state.stop_reason = reason
            self._save()
            self._log_event(f"{text}; it gets {self.context.settings.stop_seconds:g} s to write its model")
        self.folder.state.finishing = reason != "stalled"
        self._monitor.request_stop(self.context.settings.stop_seconds, finish=self.folder.state.finishing)

    @property
    def _can_finish(self) -> bool:
        """Whether a job that was stopped while no engine ran has a checkpoint of which no artifact was made yet."""
        state, job = self.folder.state, self.folder.job
        return not state.finishing and state.stop_reason != "stalled" and any(job.checkpoints.glob("step-*"))

    def _finish_training(self) -> bool:
        """Start the engine once more, only to make an artifact of the checkpoint."""
        self.folder.job.finish_marker.touch()
        self._launch()
        if self._monitor is not None:
            self.folder.state.stop_reason = self.folder.state.stop_reason or "requested"
            self.folder.state.finishing = True
            self._save()
            self._monitor.deadline = time.monotonic() + self.context.settings.stop_seconds
        return False

    def _engine_ended(self, status: ExitStatus) -> bool:
        if self.folder.state.handle is not None:
            self.context.launcher.kill(self.folder.state.handle)  # its child processes
        if not self._is_collected():
            return False
        if self._monitor is not None:
            self._monitor.poll()  # the last lines of the log
            self._monitor = None
        if status.code == 0 and self.folder.is_finished:
            self.context.devices.release(self.resource.id)
            return self._advance("upload")
        if self.folder.state.stop_reason:
            return self._stopped_early()
        if failure.is_interrupted(status):
            return self._restart(status, f"was {failure.describe_signal(status)}")
        if failure.has_lost_rank(self.folder):
            return self._restart(status, "lost one of its processes")
        return self._fail(failure.engine_failure(self.folder, status, self.events.last_line()))

    def _is_collected(self) -> bool:
        """Whether everything that an ended engine wrote is in the folder."""
        handle, launcher = self.folder.state.handle, self.context.launcher
        if handle is not None:
            if not self._is_done(lambda: launcher.collect(handle)):
                return False
            self.folder.state.handle = None
        return True

    def _restart(self, status: ExitStatus, how: str) -> bool:
        """Restart an interrupted engine from its checkpoint; fail after `max_crashes` ends without progress."""
        state = self.folder.state
        if self.folder.progress > state.progress:
            state.progress, state.crashes = self.folder.progress, 0
        state.crashes += 1
        if state.crashes >= self.context.max_crashes:
            text = failure.engine_failure(self.folder, status, self.events.last_line())
            return self._fail(f"{text} (it happened {state.crashes} times without progress between)")
        self._save()
        count = f"{state.crashes} of at most {self.context.max_crashes - 1} times without progress"
        self._log_event(f"the engine {how}; restarting it from its checkpoint ({count})")
        return True

    def _stopped_early(self) -> bool:
        reason = self.folder.state.stop_reason or "requested"
        if reason == "stalled":
            return self._fail(failure.stall_failure(self.context.settings.stall_seconds))
        if self.folder.job.artifact.is_file():  # what it had until then
            return self._advance("upload")
        return self._decide("Stopped", "MaxRuntimeExceeded" if reason == "max_runtime" else "Stopped")

    def _is_stalled(self) -> bool:
        assert self._monitor is not None
        limit = self.context.settings.stall_seconds
        return self._monitor.idle_seconds(min(10.0, limit / 20)) > limit

    # Stopping

    def request_stop(self) -> None:
        """The supervisor is about to exit: let the engine write its checkpoint and stop."""
        if self._monitor is not None:
            self._monitor.request_stop(self.context.settings.stop_seconds)

    def is_stopped(self) -> bool:
        """Whether none of the job's processes runs any more; the next supervisor collects the results."""
        if self._monitor is not None and self._monitor.poll() is not None:
            self.context.launcher.kill(self._monitor.handle)
            self._monitor = None
            self._save()
        return self._monitor is None

    def kill(self) -> None:
        """Kill the engine, if it runs."""
        if self._monitor is not None:
            self.context.launcher.kill(self._monitor.handle)
            self._monitor.poll()
            self._monitor = None
        self.context.devices.release(self.resource.id)

    def heartbeat(self) -> None:
        """Called regularly: save the time spent on the job."""
        if time.monotonic() - self._since > SAVE_SECONDS:
            self._save()

    # Parts of stages

    @property
    def _is_stop_requested(self) -> bool:
        return self.resource.stop_requested is not None

    @property
    def _seconds_worked(self) -> float:
        return self.folder.state.seconds + time.monotonic() - self._since

    def _is_past_limit(self) -> bool:
        limit = self.resource.job.max_seconds
        return limit is not None and self._seconds_worked > limit

    def _is_done(self, work: Callable[[], None]) -> bool:
        """Start `work` in a thread, once, and return whether it is done; raise its error when it is not retried."""
        if self._transfer is None:
            if self._retry.is_waiting:
                return False
            self._transfer = Transfer(work, f"{self.folder.state.stage}-{self.resource.id}")
            self._transfer.join(0.05)
        if self._transfer.running:
            return False
        error, self._transfer = self._transfer.error, None
        if error is None:
            self._retry.reset()
            return True
        if not self._retry.should_retry(error):
            raise self._retry.final_error(error)
        self._log_event(f"{self.folder.state.stage}: {' '.join(str(error).split())}; retrying")
        return False

    def _advance(self, stage: str) -> bool:
        self.folder.state.stage = stage
        self._save()
        return True

    def _decide(self, status: str, secondary: str = "", reason: str = "") -> bool:
        """Set the job's outcome, which the finish stage writes to the store."""
        self._transfer = None
        state = self.folder.state
        state.status, state.secondary, state.failure = status, secondary or status, reason
        if status != "Completed":
            self._log_event(reason or f"the job is over: {state.secondary}")
        return self._advance("finish")

    def _fail(self, reason: str) -> bool:
        self.kill()
        return self._decide("Failed", "Failed", reason)

    def _with_results(self, progress: TrainingProgress) -> TrainingProgress:
        """The progress of a job whose model is uploaded."""
        self.metrics_reader.read()
        regex_values, faults = metrics.regex_metrics(self.folder.events, self._definitions)
        for fault in faults:
            self._log_event(fault)
        reader, path = self.metrics_reader, self.folder.job.metrics
        return replace(
            progress,
            step=self._step() or progress.step,
            artifact=self.folder.state.artifact,
            metrics=tuple(metrics.final_metrics(reader, path, self._metric_names(), regex_values)),
            candidate_metrics=tuple(metrics.candidate_metrics(reader, path)),
        )

    def _current_metrics(self) -> dict[str, Any]:
        current = {"metrics": tuple(metrics.current_metrics(self.metrics_reader, self._metric_names()))}
        return current | ({"step": step} if (step := self._step()) else {})

    def _step(self) -> dict[str, int]:
        """SageMaker's ProgressInfo."""
        hyperparameters = self.resource.job.hyperparameters
        epochs, steps = hyperparameters.get("epoch"), hyperparameters.get("max_steps")
        return self.metrics_reader.progress(float(epochs) if epochs else None, int(steps) if steps else None)

    def _metric_names(self) -> list[str]:
        return metrics.metric_names(self._definitions, reads_pairs(find(self.resource.job.model)))

    @property
    def _definitions(self) -> list[dict[str, Any]]:
        algorithm: dict[str, Any] = self.resource.request.get("AlgorithmSpecification", {})
        return list(algorithm.get("MetricDefinitions", []))

    def _publish(self, progress: Mapping[str, Any] | None = None) -> None:
        """Write the current stage, if it changed, and the fields `progress` to the store."""
        secondary = SECONDARY_STATUSES.get(self.folder.state.stage, "")
        before = self.resource.training
        is_behind = self.resource.status == "InProgress" and self.resource.secondary != secondary
        is_new = before.started is None or not before.transitions
        if progress is None and not is_behind and not is_new:
            return
        changes = dict(progress or {})
        if is_behind or is_new:
            now = time.time()
            transitions = before.with_transition(secondary, now).transitions
            changes |= {"started": before.started or now, "transitions": transitions}
        self._update(secondary=secondary if is_behind else None, progress=changes)
        self._published = time.monotonic()

    def _update(
        self, status: str | None = None, secondary: str | None = None, progress: Mapping[str, Any] | None = None
    ) -> None:
        self.resource = self.context.store.update(
            self.resource.id, status, secondary=secondary, progress=progress, owner=self.context.owner
        )

    def _log_event(self, text: str) -> None:
        """Write a line to the job's log, beside the engine's own."""
        _log.info("%s %s: %s", self.resource.kind, self.resource.name, text)
        try:
            self.events.append(f"supervisor: {text}")
        except OSError as error:
            _log.warning("%s: cannot write its log: %s", self.resource.name, error)

    def _save(self) -> None:
        """Write the state to disk. If that fails, the job continues; after a kill it would repeat a stage."""
        now = time.monotonic()
        self.folder.state.seconds += now - self._since
        self._since = now
        try:
            self.folder.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.folder.save()
        except OSError as error:
            _log.warning("%s: cannot write its state: %s", self.resource.name, error)
