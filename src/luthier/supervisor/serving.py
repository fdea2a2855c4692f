"""The process that serves one variant of an endpoint: fetches its model, starts it, and restarts it after a crash.

fetching ─► starting ─► ready
               ▲  │       │ crashes
               │  ▼       ▼
              waiting ◄───┘          failed: a model that cannot be fetched or loaded, or too many crashes
"""

from __future__ import annotations

import json
import logging
import time
from contextlib import suppress
from pathlib import Path

from luthier.catalog import jumpstart
from luthier.endpoint_connection import EndpointConnections, EndpointUnreachableError
from luthier.errors import LuthierError, UserError
from luthier.jobfolder import write_json
from luthier.jobs.progress import ServedVariant
from luthier.launchers.launcher import RunHandle
from luthier.supervisor import archive, failure
from luthier.supervisor.context import SupervisorContext
from luthier.supervisor.layout import ArtifactStore
from luthier.supervisor.retry import MAX_WAIT, RetryPolicy
from luthier.supervisor.tail import EventLog
from luthier.supervisor.transfer import Transfer

MAX_CRASHES = 4  # in a row, each soon after the start, after which a variant fails
STEADY_SECONDS = 60.0  # of being ready, after which the count of crashes restarts
START_SECONDS = 3600.0  # to load the model: SageMaker's maximum start-up timeout
PING_SECONDS = 5.0
LOG_BYTES = 16 << 20  # of a process's log file, above which it is truncated once its lines are events
EVENT_BYTES = 64 << 20  # of a variant's events, at least
_connections = EndpointConnections(PING_SECONDS)
_log = logging.getLogger(__name__)


class VariantProcess:
    """The process of one variant. `state`: fetching, starting, waiting, ready or failed, with its `failure`."""

    def __init__(
        self, folder: Path, variant: ServedVariant, context: SupervisorContext, objects: ArtifactStore
    ) -> None:
        """`objects` has the rights of who created the endpoint."""
        self.name = variant.name
        self.model = variant.artifact
        self.context, self._objects = context, objects
        self.folder = folder / (variant.folder or variant.name)
        self.address = context.launcher.address(self.folder)
        self.state, self.failure = "fetching", ""
        self.events = EventLog(self.folder / "logs" / "engine.log", self.folder / "logs" / "events.jsonl", EVENT_BYTES)
        self._handle: RunHandle | None = None
        self._transfer: Transfer | None = None
        self._since = 0.0
        self._crashes = 0
        self._log_bytes = LOG_BYTES
        self._retry = RetryPolicy()

    def step(self) -> None:
        """Go on as far as is possible without waiting."""
        states = {"fetching": self._fetch, "starting": self._start, "waiting": self._wait, "ready": self._check}
        try:
            if self.state in states:
                states[self.state]()
        except (LuthierError, OSError) as error:
            self._fail(failure.service_failure(error))

    def request_stop(self) -> None:
        """Ask the process to finish its requests and exit."""
        if self._handle is not None:
            self.context.launcher.request_stop(self._handle)

    def is_stopped(self) -> bool:
        return self._handle is None or self.context.launcher.poll(self._handle) is not None

    def kill(self) -> None:
        if self._handle is not None:
            self.context.launcher.kill(self._handle)
            self._handle = None

    def _fetch(self) -> None:
        if self._base_model() or (self.folder / "fetched.json").is_file():
            self._launch()
            return
        if not self.model:
            raise UserError(f"variant {self.name}: its model has no artifact (ModelDataUrl or ModelDataSource)")
        if self._transfer is None:
            if self._retry.is_waiting:
                return
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            objects, uri, target = self._objects, self.model, self.folder / "model"
            self._transfer = Transfer(lambda: archive.fetch(objects, uri, target), f"fetch-{self.name}")
        if self._transfer.running:
            return
        error, self._transfer = self._transfer.error, None
        if error is not None:
            _log.warning("variant %s: %s", self.name, error)
            if not self._retry.should_retry(error):
                self._fail(failure.service_failure(self._retry.final_error(error)))
            return
        write_json(self.folder / "fetched.json", {"model": self.model})
        self._launch()

    def _base_model(self) -> str:
        """The id of a JumpStart artifact's base model; "" for the user's own artifact."""
        entry = jumpstart.base_model_of_key(self.model)
        if entry is None and jumpstart.is_cache_uri(self.model):
            raise UserError(f"variant {self.name}: {self.model} is not an artifact of a known model")
        return entry.id if entry else ""

    def _launch(self) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        spec = self.context.serving_spec(self.folder, self._base_model() or str(self.folder / "model"))
        self._handle = self.context.launcher.start(spec)
        write_json(self.folder / "service.json", {"handle": self._handle})
        self.state, self._since = "starting", time.monotonic()

    def _start(self) -> None:
        if self._has_crashed():
            return
        if self._transfer is None:
            address = self.address
            self._transfer = Transfer(lambda: ping(address), f"ping-{self.name}")
            self._transfer.join(0.02)
        if not self._transfer.running:
            error, self._transfer = self._transfer.error, None
            if error is None:
                self.state, self._since = "ready", time.monotonic()
        if self.state == "starting" and time.monotonic() - self._since > START_SECONDS:
            self.kill()
            self._fail(f"variant {self.name}: not ready after {START_SECONDS:,.0f} seconds")

    def _check(self) -> None:
        if not self._has_crashed() and time.monotonic() - self._since > STEADY_SECONDS:
            self._crashes = 0

    def _wait(self) -> None:
        if time.monotonic() > self._since:
            self._launch()

    def _has_crashed(self) -> bool:
        assert self._handle is not None
        status = self.context.launcher.poll(self._handle)
        with suppress(OSError):  # on a full disk events are lost, but requests are served
            while self.events.follow(last=status is not None):
                pass
            if status is None and self.events.offset > self._log_bytes:
                self._truncate_log()
        if status is None:
            return False
        self.kill()
        self._transfer = None
        self._crashes += 1
        last = self.events.last_line() or "(none)"
        how = f"was {failure.describe_signal(status)}" if status.signal else f"ended with exit code {status.code}"
        if status.code == UserError.exit_code or self._crashes >= MAX_CRASHES:
            self._fail(f"variant {self.name}: its process {how}; the last line of its log: {last}")
            return True
        pause = min(MAX_WAIT, 2.0 ** (self._crashes - 1) / 2)
        _log.warning("variant %s: its process %s; restarting it in %g s", self.name, how, pause)
        self.state, self._since = "waiting", time.monotonic() + pause
        return True

    def _truncate_log(self) -> None:
        """Truncate the log while the process is suspended, so that no line is lost between the last read and that."""
        assert self._handle is not None
        with self.context.launcher.paused(self._handle) as is_paused:
            is_truncated = is_paused and self.events.truncate_log()
        if not is_paused:
            _log.warning("variant %s: cannot truncate its log: its process cannot be suspended", self.name)
        self._log_bytes = LOG_BYTES if is_truncated else self.events.offset + LOG_BYTES // 16

    def _fail(self, reason: str) -> None:
        self.state, self.failure = "failed", reason


def read_handle(folder: Path) -> RunHandle | None:
    """The last run in a variant's folder; None if there was none."""
    path = folder / "service.json"
    return json.loads(path.read_text("utf-8"))["handle"] if path.is_file() else None


def ping(address: str) -> None:
    """Return when GET /ping at `address` answers 200; EndpointUnreachableError otherwise."""
    with _connections.request(address, "GET", "/ping") as response:
        response.read()
        if response.status != 200:
            raise EndpointUnreachableError(f"/ping answers {response.status}")
