"""The process that serves one variant of an endpoint: its model fetched, itself started, and again when it dies.

    fetching ─► starting ─► ready
                   ▲  │       │ dies
                   │  ▼       ▼
                  waiting ◄───┘          failed: a model that cannot be had or loaded, or too many deaths

It knows the processes and the folder of one variant, nothing of the store.
"""

from __future__ import annotations

import hashlib
import http.client
import logging
import os
import socket
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from luthier.catalog import jumpstart
from luthier.errors import LuthierError, UserError
from luthier.jobfolder import write_json
from luthier.launchers import process
from luthier.launchers.process import CPU, Launch, Running, environment
from luthier.supervisor import archive, ending
from luthier.supervisor.context import SupervisorContext
from luthier.supervisor.retry import RetryPolicy
from luthier.supervisor.tail import EventLog
from luthier.supervisor.transfer import Transfer

DEATHS = 4  # in a row, each soon after the start, after which a variant is given up
STEADY_SECONDS = 60.0  # ready for so long, deaths start over
LONGEST_WAIT = 30.0
START_SECONDS = 3600.0  # that a model may take to load, SageMaker's longest start-up time
PING_SECONDS = 5.0
LOG_BYTES = 16 << 20  # of a process's log file, above which it is emptied once its lines are events
EVENT_BYTES = 64 << 20  # of a variant's events that are kept at least
_LONGEST_SOCKET = 100  # bytes of a path; the systems' limits begin at 104
_log = logging.getLogger(__name__)


class Variant:
    """One production variant. `state` is fetching, starting, waiting, ready or failed; then `failure` says why."""

    def __init__(self, folder: Path, given: Mapping[str, Any], context: SupervisorContext) -> None:
        self.name = str(given["VariantName"])
        self.model = str(given.get("ModelData") or "")
        self.context = context
        self.folder = folder / str(given.get("Folder") or self.name)
        self.address = _socket(self.folder)
        self.state, self.failure = "fetching", ""
        self.events = EventLog(self.folder / "logs" / "engine.log", self.folder / "logs" / "events.jsonl", EVENT_BYTES)
        self._running: Running | None = None
        self._work: Transfer | None = None
        self._since = 0.0
        self._deaths = 0
        self._log_bytes = LOG_BYTES
        self._retry = RetryPolicy()

    def step(self) -> None:
        """Go on as far as is possible without waiting."""
        states = {"fetching": self._fetch, "starting": self._start, "waiting": self._wait, "ready": self._look}
        try:
            if self.state in states:
                states[self.state]()
        except (LuthierError, OSError) as error:
            self._fail(ending.of_fault(error))

    def ask(self) -> None:
        """Let it answer what it was asked, and end."""
        if self._running is not None:
            self._running.ask()

    def gone(self) -> bool:
        if self._running is not None and self._running.poll() is not None:
            self._running = None
        return self._running is None

    def kill(self) -> None:
        if self._running is not None:
            self._running.kill()
            self._running = None
        Path(self.address).unlink(missing_ok=True)

    def _fetch(self) -> None:
        base = self._base()
        if base or self._fetched():
            self._launch()
            return
        if not self.model:
            raise UserError(f"variant {self.name}: its model has no artifact (ModelDataUrl or ModelDataSource)")
        if self._work is None:
            if self._retry.is_waiting:
                return
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            objects, uri, target = self.context.objects, self.model, self.folder / "model"
            self._work = Transfer(lambda: archive.fetch(objects, uri, target), f"fetch-{self.name}")
        if self._work.running:
            return
        error, self._work = self._work.error, None
        if error is not None:
            _log.warning("variant %s: %s", self.name, error)
            if not self._retry.should_retry(error):
                self._fail(ending.of_fault(self._retry.final_error(error)))
            return
        write_json(self.folder / "fetched.json", {"model": self.model})
        self._launch()

    def _fetched(self) -> bool:
        return (self.folder / "fetched.json").is_file()

    def _base(self) -> str:
        """The base model that a JumpStart artifact stands for; empty where the artifact is somebody's own."""
        entry = jumpstart.base_model_of_key(self.model)
        if entry is None and jumpstart.is_cache_uri(self.model):
            raise UserError(f"variant {self.name}: {self.model} is no artifact of a model known here")
        return entry.id if entry else ""

    def _launch(self) -> None:
        device = self.context.settings.serving_device
        target = self._base() or str(self.folder / "model")
        command = (
            *self.context.serving,
            target,
            "--socket",
            self.address,
            "--device",
            CPU if device == CPU else "cuda",
        )
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        Path(self.address).unlink(missing_ok=True)
        self._running = Running(Launch(
            command, self.folder, self.folder / "logs" / "engine.log", environment(device), self.context.limits
        ))  # fmt: skip
        self.state, self._since = "starting", time.monotonic()

    def _start(self) -> None:
        if self._died():
            return
        if self._work is None and Path(self.address).exists():
            address = self.address
            self._work = Transfer(lambda: ping(address), f"ping-{self.name}")
            self._work.join(0.02)
        if self._work is not None and not self._work.running:
            error, self._work = self._work.error, None
            if error is None:
                self.state, self._since = "ready", time.monotonic()
        if self.state == "starting" and time.monotonic() - self._since > START_SECONDS:
            self.kill()
            self._fail(f"variant {self.name}: not ready after {START_SECONDS:,.0f} seconds")

    def _look(self) -> None:
        if not self._died() and time.monotonic() - self._since > STEADY_SECONDS:
            self._deaths = 0

    def _wait(self) -> None:
        if time.monotonic() > self._since:
            self._launch()

    def _died(self) -> bool:
        assert self._running is not None
        code = self._running.poll()
        with suppress(OSError):  # a full disk costs events, not answers
            while self.events.follow(last=code is not None):
                pass
            if code is None and self.events.offset > self._log_bytes:
                self._empty_log()
        if code is None:
            return False
        process.end(process.marked(self.folder))
        self._running, self._work = None, None
        self._deaths += 1
        last = self.events.last_line() or "(none)"
        how = f"ended with exit code {code}" if code >= 0 else f"was {ending.how(code)}"
        if code == UserError.exit_code or self._deaths >= DEATHS:
            self._fail(f"variant {self.name}: its process {how}; the last line of its log: {last}")
            return True
        pause = min(LONGEST_WAIT, 2.0 ** (self._deaths - 1) / 2)
        _log.warning("variant %s: its process %s; started again in %g s", self.name, how, pause)
        self.state, self._since = "waiting", time.monotonic() + pause
        return True

    def _empty_log(self) -> None:
        """Of a process that stands still, so that no line is written between the last look and the emptying."""
        assert self._running is not None
        with self._running.paused() as still:
            emptied = still and self.events.empty()
        if not still:
            _log.warning("variant %s: its log cannot be emptied: its process does not stand still", self.name)
        self._log_bytes = LOG_BYTES if emptied else self.events.offset + LOG_BYTES // 16

    def _fail(self, failure: str) -> None:
        self.state, self.failure = "failed", failure


def ping(address: str) -> None:
    """Return when GET /ping at a unix socket answers 200; OSError or HTTPException otherwise."""
    connection = UnixConnection(address)
    try:
        connection.request("GET", "/ping")
        answer = connection.getresponse()
        answer.read()
        if answer.status != 200:
            raise ConnectionError(f"/ping answers {answer.status}")
    finally:
        connection.close()


class UnixConnection(http.client.HTTPConnection):
    """HTTP over the unix socket at `address`."""

    def __init__(self, address: str, timeout: float = PING_SECONDS) -> None:
        super().__init__("localhost", timeout=timeout)
        self._address = address

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._address)


def _socket(folder: Path) -> str:
    """A path short enough for a socket: beside the variant's folder, or in one of our own among the temporary files."""
    path = folder.with_name(f"{folder.name}.sock")
    if len(os.fsencode(path)) <= _LONGEST_SOCKET:
        return str(path)
    own = Path(tempfile.gettempdir()) / f"luthier-{os.getuid()}"
    own.mkdir(mode=0o700, exist_ok=True)
    state = own.lstat()
    if own.is_symlink() or state.st_uid != os.getuid() or state.st_mode & 0o077:
        raise UserError(f"{own}: not a folder of ours alone; remove it, or choose a shorter home for the sockets")
    return str(own / f"{hashlib.sha256(os.fsencode(path)).hexdigest()[:24]}.sock")
