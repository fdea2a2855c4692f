"""One job, from the queue to its end: each stage can be repeated, and is recorded before the next begins.

    prepare ─► download ─► train ─► upload ─► deploy ─► finish
                  │          │                             ▲
                  └──────────┴── stopped, failed ──────────┘

A stage is a method that goes as far as it can without waiting, and returns whether the next step can follow at once.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from luthier.errors import LuthierError
from luthier.jobs.states import IllegalMoveError
from luthier.jobs.store import GoneError, Resource
from luthier.launchers.launcher import ExitStatus
from luthier.supervisor import collect, failure, metrics, order
from luthier.supervisor.context import SupervisorContext
from luthier.supervisor.deploy import deploy
from luthier.supervisor.folder import ServiceFolder
from luthier.supervisor.layout import lay_out, put_on
from luthier.supervisor.metrics import Curve
from luthier.supervisor.monitor import RunMonitor
from luthier.supervisor.retry import RetryPolicy
from luthier.supervisor.tail import EventLog
from luthier.supervisor.transfer import Transfer
from luthier.supervisor.transitions import moved

PUBLISH_SECONDS = 2.0  # between two updates of a running job's metrics in the store
SAVE_SECONDS = 5.0  # between two writes of the time spent on a job
SECONDARY_STATUSES: Mapping[str, Mapping[str, str]] = {  # by kind and stage
    "training-job": {"prepare": "Starting", "download": "Downloading", "train": "Training", "upload": "Uploading"},
    "automl-job": {"prepare": "Starting", "download": "PreTraining", "train": "TrainingModels",
                   "upload": "TrainingModels", "deploy": "DeployingModel"},
}  # fmt: skip
_log = logging.getLogger(__name__)


class JobWork:
    """The work on one job that this supervisor holds."""

    def __init__(self, resource: Resource, context: SupervisorContext) -> None:
        self.resource = resource
        self.context = context
        self.folder = ServiceFolder(context.settings.jobs / resource.id)
        self.events = EventLog(self.folder.log, self.folder.events)
        self.curve = Curve(self.folder.job.metrics_lines)
        self.is_over = False
        self._monitor: RunMonitor | None = None
        self._transfer: Transfer | None = None
        self._retry = RetryPolicy()
        self._since = self._published = time.monotonic()
        self._stages: Mapping[str, Callable[[], bool]] = {
            "prepare": self._prepare, "download": self._download, "train": self._train, "upload": self._upload,
            "deploy": self._deploy, "finish": self._finish,
        }  # fmt: skip

    def step(self, resource: Resource | None) -> bool:
        """Go on as far as is possible without waiting; True when the job needs no supervisor any more.

        `resource` is the job as it stands in the store now, None when it was deleted or taken over.
        """
        if resource is None:
            self.kill()
            return True
        self.resource = resource
        try:
            while not self.is_over and self._stages[self.folder.state.stage]():
                pass
        except (GoneError, IllegalMoveError) as gone:
            _log.warning("%s %s: %s", resource.kind, resource.name, gone)
            self.kill()
            return True
        except SQLAlchemyError:
            raise  # the database will be back: the stage is done again
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
        """Whether an engine is still to run."""
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
        resource, folder, objects = self.resource, self.folder, self.context.objects
        if not self._is_done(lambda: lay_out(folder, resource, objects, device)):
            return self._is_past_limit() and self._decide(*self._limit_outcome())
        return self._advance("train")

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
                return self._stopped_early()
            return self._launch()
        status = self._monitor.poll()
        new = self.curve.read()
        if status is not None:
            return self._engine_ended(status)
        if self._is_stop_requested:
            self._stop_engine("requested", "the job was asked to stop")
        elif self._is_past_limit():
            self._stop_engine("max_runtime", f"the job reached {order.limit(self.resource).member}")
        elif self._is_stalled():
            self._stop_engine("stalled", "the engine makes no progress")
        elif new and time.monotonic() - self._published > PUBLISH_SECONDS:
            self._publish(self._current_metrics())
        return False

    def _upload(self) -> bool:
        self._publish()
        resource, folder, objects = self.resource, self.folder, self.context.objects
        if not self._is_done(lambda: collect.upload(folder, resource, objects)):
            return False
        self.folder.state.artifact = collect.artifact(resource)
        if self._is_stop_requested:
            return self._decide("Stopped")
        if self.folder.state.stop_reason == "max_runtime":
            return self._decide(*self._limit_outcome())
        if order.is_automl(resource) and resource.request.get("ModelDeployConfig"):
            return self._advance("deploy")
        return self._decide("Completed")

    def _deploy(self) -> bool:
        if self._is_stop_requested:
            return self._decide("Stopped")
        self._publish()
        deployment = deploy(self.context.store, self.resource)
        if deployment.failure:
            self._update(facts={"deploy_failure": deployment.failure})
            self._log_event(f"the model could not be deployed: {deployment.failure}")
            return self._decide("Completed", "ModelDeploymentError")
        if not deployment.ready:
            return False
        self._update(facts={"deployed": deployment.endpoint})
        return self._decide("Completed")

    def _finish(self) -> bool:
        state, now = self.folder.state, time.time()
        facts: dict[str, Any] = {"started": self.resource.facts.get("started", now), "ended": now, "message": ""}
        if state.failure:
            facts["failure"] = state.failure
        if state.artifact:
            facts |= self._results()
            collect.sweep(self.folder)
        facts["transitions"] = moved(self.resource.facts.get("transitions", ()), state.secondary, now, state.failure)
        self._update(state.status, state.secondary, facts)
        self.context.devices.release(self.resource.id)
        self.is_over = True
        return False

    # The engine

    def _launch(self) -> bool:
        device = self.context.devices.acquire(self.resource.id)
        if device is None:
            return False
        self._publish()
        put_on(self.folder, device)
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
                self._update(move, move, {"transitions": self._transitions("Stopping")})
            self.folder.state.stop_reason = reason
            self._save()
            self._log_event(f"{text}; it gets {self.context.settings.stop_seconds:g} s to write a checkpoint")
        self._monitor.request_stop(self.context.settings.stop_seconds)

    def _engine_ended(self, status: ExitStatus) -> bool:
        if self.folder.state.handle is not None:
            self.context.launcher.kill(self.folder.state.handle)  # processes that outlived the first one
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
        """Restart an engine that did not fail itself from its checkpoint, unless it makes no progress between."""
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
        return self._decide(*(("Stopped", "Stopped") if reason == "requested" else self._limit_outcome()))

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
        """Whether nothing of this job is running any more; the next supervisor collects what it wrote."""
        if self._monitor is not None and self._monitor.poll() is not None:
            self.context.launcher.kill(self._monitor.handle)
            self._monitor = None
            self._save()
        return self._monitor is None

    def kill(self) -> None:
        """End what runs, at once."""
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
        return self.resource.stop_asked is not None

    @property
    def _seconds_worked(self) -> float:
        return self.folder.state.seconds + time.monotonic() - self._since

    def _is_past_limit(self) -> bool:
        return self._seconds_worked > order.limit(self.resource).seconds

    def _limit_outcome(self) -> tuple[str, str]:
        if not order.is_automl(self.resource):
            return "Stopped", "MaxRuntimeExceeded"
        return "Completed" if self.folder.state.artifact else "Stopped", "MaxAutoMLJobRuntimeReached"

    def _is_done(self, work: Callable[[], None]) -> bool:
        """Whether `work`, started in a thread unless it was, is done. Raises what it raised once it is not retried."""
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
        """Decide the job's outcome; what is left is to write it to the store."""
        self._transfer = None
        state = self.folder.state
        state.status, state.secondary, state.failure = status, secondary or status, reason
        if status != "Completed":
            self._log_event(reason or f"the job is over: {state.secondary}")
        return self._advance("finish")

    def _fail(self, reason: str) -> bool:
        self.kill()
        return self._decide("Failed", "Failed", reason)

    def _results(self) -> dict[str, Any]:
        """The facts of a job whose model is uploaded."""
        self.curve.read()
        names = self._metric_names()
        own, faults = metrics.found_in(self.folder.events, self._definitions)
        for fault in faults:
            self._log_event(fault)
        facts: dict[str, Any] = self._progress() | {
            "artifact": self.folder.state.artifact,
            "metrics": metrics.final(self.curve, self.folder.job.metrics, names, own),
        }
        if order.is_automl(self.resource):
            facts["candidate"] = collect.candidate(self.folder, self.resource, self.curve, time.time())
        return facts

    def _current_metrics(self) -> dict[str, Any]:
        return {"metrics": metrics.running(self.curve, self._metric_names())} | self._progress()

    def _progress(self) -> dict[str, Any]:
        given = self.resource.facts.get("hyperparameters", {})
        steps, epochs = (_number(given, names) for names in (("max_steps",), ("epoch", "epochs", "epochCount")))
        found = self.curve.progress(epochs, int(steps) if steps else None)
        return {"progress": found} if found else {}

    def _metric_names(self) -> list[str]:
        return metrics.names(self._definitions, order.reads_pairs(order.entry_of(self.resource)))

    @property
    def _definitions(self) -> list[dict[str, Any]]:
        algorithm: dict[str, Any] = self.resource.request.get("AlgorithmSpecification", {})
        return list(algorithm.get("MetricDefinitions", []))

    def _transitions(self, secondary: str) -> list[dict[str, Any]]:
        return moved(self.resource.facts.get("transitions", ()), secondary, time.time())

    def _publish(self, facts: Mapping[str, Any] | None = None) -> None:
        """Write the current stage to the store, where it is not there yet, with `facts`."""
        secondary = SECONDARY_STATUSES[self.resource.kind].get(self.folder.state.stage, "")
        behind = self.resource.status == "InProgress" and self.resource.secondary != secondary
        new = "started" not in self.resource.facts or not self.resource.facts.get("transitions")
        if facts is None and not behind and not new:
            return
        added = dict(facts or {})
        if behind or new:
            started = self.resource.facts.get("started", time.time())
            added |= {"started": started, "transitions": self._transitions(secondary)}
        self._update(secondary=secondary if behind else None, facts=added)
        self._published = time.monotonic()

    def _update(
        self, status: str | None = None, secondary: str | None = None, facts: Mapping[str, Any] | None = None
    ) -> None:
        self.resource = self.context.store.update(
            self.resource.id, status, secondary=secondary, facts=facts, owner=self.context.owner
        )

    def _log_event(self, text: str) -> None:
        """Write a line to the job's log, beside the engine's own."""
        _log.info("%s %s: %s", self.resource.kind, self.resource.name, text)
        try:
            self.events.append(f"supervisor: {text}")
        except OSError as error:
            _log.warning("%s: cannot write its log: %s", self.resource.name, error)

    def _save(self) -> None:
        """Write the state to disk. Where that fails the job goes on, and a kill costs the repetition of a stage."""
        now = time.monotonic()
        self.folder.state.seconds += now - self._since
        self._since = now
        try:
            self.folder.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.folder.save()
        except OSError as error:
            _log.warning("%s: cannot write its state: %s", self.resource.name, error)


def _number(given: Mapping[str, Any], names: tuple[str, ...]) -> float | None:
    for name in names:
        try:
            return float(given[name])
        except (KeyError, ValueError):
            continue
    return None
