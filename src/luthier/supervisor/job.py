"""One job, from the queue to its end: each stage can be done again, and leaves a mark before the next begins.

    prepare ─► download ─► train ─► upload ─► deploy ─► finish
                  │          │                             ▲
                  └──────────┴── stopped, failed ──────────┘

A stage is a method that goes as far as it can without waiting and says whether there is more to do at once.
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
from luthier.launchers import process
from luthier.launchers.process import Running
from luthier.supervisor import collect, ending, metrics, order
from luthier.supervisor.context import SupervisorContext
from luthier.supervisor.deploy import deploy
from luthier.supervisor.folder import ServiceFolder
from luthier.supervisor.layout import lay_out, put_on
from luthier.supervisor.metrics import Curve
from luthier.supervisor.retry import RetryPolicy
from luthier.supervisor.tail import EventLog
from luthier.supervisor.transfer import Transfer
from luthier.supervisor.transitions import moved
from luthier.supervisor.watch import Watch

SHOWN_EVERY = 2.0  # seconds between two updates of a running job's numbers
KEPT_EVERY = 5.0  # seconds between two savings of the time worked
# The secondary status of each stage, by kind.
STATIONS: Mapping[str, Mapping[str, str]] = {
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
        self.over = False
        self._watch: Watch | None = None
        self._transfer: Transfer | None = None
        self._retry = RetryPolicy()
        self._since = self._shown = time.monotonic()
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
            while not self.over and self._stages[self.folder.marks.stage]():
                pass
        except (GoneError, IllegalMoveError) as gone:
            _log.warning("%s %s: %s", resource.kind, resource.name, gone)
            self.kill()
            return True
        except SQLAlchemyError:
            raise  # the database will be back: the stage is done again
        except Exception as error:
            if not isinstance(error, LuthierError):
                _log.exception("%s %s: stage %s", resource.kind, resource.name, self.folder.marks.stage)
            if self.folder.marks.status == "Failed":
                raise  # it cannot even be said that it failed: the loop tries again
            self.folder.marks.artifact = ""
            self._give_up(ending.of_fault(error))
        return self.over

    @property
    def needs_device(self) -> bool:
        """Whether an engine is still to run."""
        return self.folder.marks.stage in ("prepare", "download", "train")

    # Stages

    def _prepare(self) -> bool:
        if self._asked:
            return self._settle("Stopped")
        self.folder.create(self.resource.request)
        self._show()
        return self._go_on("download")

    def _download(self) -> bool:
        if self._asked:
            return self._settle("Stopped")
        device = self.context.devices.acquire(self.resource.id)
        if device is None:
            return False
        self._show()
        resource, folder, objects = self.resource, self.folder, self.context.objects
        if not self._done(lambda: lay_out(folder, resource, objects, device)):
            return self._past_limit() and self._settle(*self._stopped_by_limit())
        return self._go_on("train")

    def _train(self) -> bool:
        if self._watch is None:
            while self.events.follow(last=True):  # what an engine wrote while no supervisor was there
                pass
            if self.folder.finished:
                self.context.devices.release(self.resource.id)
                return self._go_on("upload")
            if self.folder.marks.ending or self._asked:
                return self._ended_early()
            return self._launch()
        code = self._watch.look()
        new = self.curve.read()
        if code is not None:
            return self._engine_ended(code)
        if self._asked:
            self._end_engine("asked", "the job was asked to stop")
        elif self._past_limit():
            self._end_engine("runtime", f"the job reached {order.limit(self.resource).member}")
        elif self._idle():
            self._end_engine("stalled", "the engine makes no progress")
        elif new and time.monotonic() - self._shown > SHOWN_EVERY:
            self._show(self._numbers())
        return False

    def _upload(self) -> bool:
        self._show()
        resource, folder, objects = self.resource, self.folder, self.context.objects
        if not self._done(lambda: collect.upload(folder, resource, objects)):
            return False
        self.folder.marks.artifact = collect.artifact(resource)
        if self._asked:
            return self._settle("Stopped")
        if self.folder.marks.ending == "runtime":
            return self._settle(*self._stopped_by_limit())
        if order.is_automl(resource) and resource.request.get("ModelDeployConfig"):
            return self._go_on("deploy")
        return self._settle("Completed")

    def _deploy(self) -> bool:
        if self._asked:
            return self._settle("Stopped")
        self._show()
        deployment = deploy(self.context.store, self.resource)
        if deployment.failure:
            self._update(facts={"deploy_failure": deployment.failure})
            self._say(f"the model could not be deployed: {deployment.failure}")
            return self._settle("Completed", "ModelDeploymentError")
        if not deployment.ready:
            return False
        self._update(facts={"deployed": deployment.endpoint})
        return self._settle("Completed")

    def _finish(self) -> bool:
        marks, now = self.folder.marks, time.time()
        facts: dict[str, Any] = {"started": self.resource.facts.get("started", now), "ended": now, "message": ""}
        if marks.failure:
            facts["failure"] = marks.failure
        if marks.artifact:
            facts |= self._results()
            collect.sweep(self.folder)
        facts["transitions"] = moved(self.resource.facts.get("transitions", ()), marks.secondary, now, marks.failure)
        self._update(marks.status, marks.secondary, facts)
        self.context.devices.release(self.resource.id)
        self.over = True
        return False

    # The engine

    def _launch(self) -> bool:
        device = self.context.devices.acquire(self.resource.id)
        if device is None:
            return False
        self._show()
        put_on(self.folder, device)
        resume = self.folder.job.split.exists() or self.folder.job.checkpoints.exists()
        launch = self.context.launch(self.folder.root, self.folder.log, device, resume)
        running = Running(launch)
        self.folder.marks.process = {"pid": running.trace.pid, "created": running.trace.created}
        self._watch = Watch(running, self.folder, self.events, self.curve)
        self._keep()
        return False

    def _end_engine(self, why: str, text: str) -> None:
        assert self._watch is not None
        if not self.folder.marks.ending:
            if why != "stalled":
                move = "Stopping" if why == "runtime" else None  # who asked for a stop has moved it
                self._update(move, move, {"transitions": self._stations("Stopping")})
            self.folder.marks.ending = why
            self._keep()
            self._say(f"{text}; it gets {self.context.settings.stop_seconds:g} s to write a checkpoint")
        self._watch.ask(self.context.settings.stop_seconds)

    def _engine_ended(self, code: int) -> bool:
        self._watch = None
        process.end(process.marked(self.folder.root))
        self.folder.marks.process = None
        if code == 0 and self.folder.finished:
            self.context.devices.release(self.resource.id)
            return self._go_on("upload")
        if self.folder.marks.ending:
            return self._ended_early()
        if ending.by_signal(code):
            return self._died(code, f"was {ending.how(code)}")
        if ending.lost_a_rank(self.folder):
            return self._died(code, "lost one of its processes")
        return self._give_up(ending.reason(self.folder, code, self.events.last_line()))

    def _died(self, code: int, how: str) -> bool:
        """The engine was ended by somebody else: it goes on from its checkpoint, unless that gets it nowhere."""
        marks = self.folder.marks
        if self.folder.progress > marks.progress:
            marks.progress, marks.deaths = self.folder.progress, 0
        marks.deaths += 1
        if marks.deaths >= self.context.max_crashes:
            text = ending.reason(self.folder, code, self.events.last_line())
            return self._give_up(f"{text} (it happened {marks.deaths} times without progress between)")
        self._keep()
        self._say(f"the engine {how}; it is started again from its checkpoint "
                  f"({marks.deaths} of at most {self.context.max_crashes - 1} times without progress)")  # fmt: skip
        return True

    def _ended_early(self) -> bool:
        why = self.folder.marks.ending or "asked"
        if why == "stalled":
            return self._give_up(ending.stalled(self.context.settings.stall_seconds))
        return self._settle(*(("Stopped", "Stopped") if why == "asked" else self._stopped_by_limit()))

    def _idle(self) -> bool:
        assert self._watch is not None
        limit = self.context.settings.stall_seconds
        return self._watch.idle_seconds(min(10.0, limit / 20)) > limit

    # Leaving

    def ask(self) -> None:
        """The supervisor is about to leave: let the engine write its checkpoint and end."""
        if self._watch is not None:
            self._watch.ask(self.context.settings.stop_seconds)

    def gone(self) -> bool:
        """Whether nothing of this work is running any more."""
        if self._watch is not None and self._watch.look() is not None:
            self._watch, self.folder.marks.process = None, None
            process.end(process.marked(self.folder.root))
            self._keep()
        return self._watch is None

    def kill(self) -> None:
        """End what runs, at once."""
        if self._watch is not None:
            self._watch.running.kill()
            self._watch.look()
            self._watch = None
        self.context.devices.release(self.resource.id)

    def beat(self) -> None:
        """Called now and then: keep the time that was worked."""
        if time.monotonic() - self._since > KEPT_EVERY:
            self._keep()

    # Parts of stages

    @property
    def _asked(self) -> bool:
        return self.resource.stop_asked is not None

    @property
    def _worked(self) -> float:
        return self.folder.marks.seconds + time.monotonic() - self._since

    def _past_limit(self) -> bool:
        return self._worked > order.limit(self.resource).seconds

    def _stopped_by_limit(self) -> tuple[str, str]:
        if not order.is_automl(self.resource):
            return "Stopped", "MaxRuntimeExceeded"
        return "Completed" if self.folder.marks.artifact else "Stopped", "MaxAutoMLJobRuntimeReached"

    def _done(self, work: Callable[[], None]) -> bool:
        """Whether `work`, begun beside the loop if it was not, is done. What it raised is raised here."""
        if self._transfer is None:
            if self._retry.is_waiting:
                return False
            self._transfer = Transfer(work, f"{self.folder.marks.stage}-{self.resource.id}")
            self._transfer.join(0.05)
        if self._transfer.running:
            return False
        error, self._transfer = self._transfer.error, None
        if error is None:
            self._retry.reset()
            return True
        if not self._retry.should_retry(error):
            raise self._retry.final_error(error)
        self._say(f"{self.folder.marks.stage}: {' '.join(str(error).split())}; it is tried again")
        return False

    def _go_on(self, stage: str) -> bool:
        self.folder.marks.stage = stage
        self._keep()
        return True

    def _settle(self, status: str, secondary: str = "", failure: str = "") -> bool:
        """Settle what the job ends with; from now on only the store has to hear of it."""
        self._transfer = None
        marks = self.folder.marks
        marks.status, marks.secondary, marks.failure = status, secondary or status, failure
        if status != "Completed":
            self._say(failure or f"the job is over: {marks.secondary}")
        return self._go_on("finish")

    def _give_up(self, failure: str) -> bool:
        self.kill()
        return self._settle("Failed", "Failed", failure)

    def _results(self) -> dict[str, Any]:
        """The facts of a job whose model is uploaded."""
        self.curve.read()
        names = self._metric_names()
        own, faults = metrics.found_in(self.folder.events, self._definitions)
        for fault in faults:
            self._say(fault)
        facts: dict[str, Any] = self._progress() | {
            "artifact": self.folder.marks.artifact,
            "metrics": metrics.final(self.curve, self.folder.job.metrics, names, own),
        }
        if order.is_automl(self.resource):
            facts["candidate"] = collect.candidate(self.folder, self.resource, self.curve, time.time())
        return facts

    def _numbers(self) -> dict[str, Any]:
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

    def _stations(self, station: str) -> list[dict[str, Any]]:
        return moved(self.resource.facts.get("transitions", ()), station, time.time())

    def _show(self, facts: Mapping[str, Any] | None = None) -> None:
        """Bring the store to the stage at work, where it is not there yet, with `facts`."""
        station = STATIONS[self.resource.kind].get(self.folder.marks.stage, "")
        behind = self.resource.status == "InProgress" and self.resource.secondary != station
        new = "started" not in self.resource.facts or not self.resource.facts.get("transitions")
        if facts is None and not behind and not new:
            return
        added = dict(facts or {})
        if behind or new:
            started = self.resource.facts.get("started", time.time())
            added |= {"started": started, "transitions": self._stations(station)}
        self._update(secondary=station if behind else None, facts=added)
        self._shown = time.monotonic()

    def _update(
        self, status: str | None = None, secondary: str | None = None, facts: Mapping[str, Any] | None = None
    ) -> None:
        self.resource = self.context.store.update(
            self.resource.id, status, secondary=secondary, facts=facts, owner=self.context.owner
        )

    def _say(self, text: str) -> None:
        """Into the job's log, beside the engine's own lines."""
        _log.info("%s %s: %s", self.resource.kind, self.resource.name, text)
        try:
            self.events.say(f"supervisor: {text}")
        except OSError as error:
            _log.warning("%s: its log cannot be written: %s", self.resource.name, error)

    def _keep(self) -> None:
        """Bring the marks to disk. Where that fails the work goes on, and a kill costs the repetition of a stage."""
        now = time.monotonic()
        self.folder.marks.seconds += now - self._since
        self._since = now
        try:
            self.folder.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.folder.save()
        except OSError as error:
            _log.warning("%s: its marks cannot be written: %s", self.resource.name, error)


def _number(given: Mapping[str, Any], names: tuple[str, ...]) -> float | None:
    for name in names:
        try:
            return float(given[name])
        except (KeyError, ValueError):
            continue
    return None
