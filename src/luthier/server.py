"""The service's program: `python -P -m luthier.server`, its request (what `luthier serve` was given) on stdin.

It assembles the service: the SQL store, the object store, the AWS protocols on one port with the service's own routes
under /_luthier/, the HTTPS proxy, and the supervisor as a child process. It knows nothing of what any of them does.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shlex
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import sqlalchemy as sa

from luthier import __version__, entrypoint
from luthier.api.service import Service
from luthier.defaults import DEFAULT_HOST, DEFAULT_PORT
from luthier.errors import LuthierError, SettingError, UserError
from luthier.jobs.settings import ServiceSettings
from luthier.jobs.store import Store
from luthier.objects.forwarding_store import ForwardingObjectStore
from luthier.objects.store import EmbeddedObjectStore, ObjectStore
from luthier.protocol.asgi import application
from luthier.protocol.call import ACCOUNT, Call
from luthier.protocol.errors import WireError
from luthier.protocol.gateway import Gateway, RequestContext
from luthier.protocol.message import Request, Response
from luthier.service import jumpstart_bucket, sdk_defaults
from luthier.service.audit import AuditLog
from luthier.service.child import ChildProcess
from luthier.service.devices import check_device, parse_slots
from luthier.service.journal import configure_logging
from luthier.service.keys import Keys, authenticator, check_origin
from luthier.service.limits import check_seconds, parse_limits
from luthier.service.listener import listen, serve
from luthier.service.metrics import CONTENT_TYPE, Metrics
from luthier.service.operations import KNOWN, operate
from luthier.service.proxy import Authority, Proxy
from luthier.service.supervisor_settings import start_supervisor
from luthier.supervisor.loop import heartbeat_file

LOOPBACK = DEFAULT_HOST
HEARTBEAT_SECONDS = 30.0  # without a heartbeat, after which the supervisor counts as gone
SWEEP_SECONDS = 3600.0  # between two removals of what killed uploads left in the object store
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Options:
    """The options of `luthier serve`: the settings that every part reads, and what only this program needs.

    `proxy_port` is None without a proxy; `log` is a file, "-" for stderr, "" for HOME/logs/server.log.
    """

    settings: ServiceSettings
    proxy_port: int | None
    no_auth: bool
    log: str

    @classmethod
    def read(cls, request: Mapping[str, Any]) -> Options:
        """Parse the request of `luthier serve`; SettingError for an invalid value."""
        objects = request["objects"]
        url = urlsplit(objects)
        if objects and not (url.scheme in ("http", "https") and url.hostname):
            raise SettingError(f"--objects {objects}: expected http://HOST or https://HOST")
        settings = ServiceSettings(
            home=Path(request["home"]),
            host=request["host"],
            port=request["port"],
            database=request["database"],
            objects=objects,
            slots=parse_slots(request["slots"]),
            stall_seconds=check_seconds(request["stall_seconds"], "--stall-seconds", 1),
            stop_seconds=check_seconds(request["stop_seconds"], "--stop-seconds", 0),
            serving_device=check_device(request["serve_on"], "--serve-on"),
            limits=parse_limits(request["limits"]),
        )
        return cls(settings, request["proxy_port"], request["no_auth"], request["log"])

    @property
    def log_file(self) -> Path | None:
        """None for stderr."""
        if self.log == "-":
            return None
        return Path(self.log).expanduser().absolute() if self.log else self.settings.home / "logs" / "server.log"

    @property
    def is_loopback(self) -> bool:
        return self.settings.host in ("localhost", "::1") or self.settings.host.startswith("127.")


def main() -> None:
    """Serve until SIGTERM or SIGINT; every error at the start is one line."""
    options = Options.read(json.load(sys.stdin))
    os.umask(0o077)  # an existing home may be readable by others
    with ExitStack() as stack:
        stack.enter_context(_locked_home(options.settings.home))
        store = Store.open(options.settings.database_url)
        stack.callback(store.close)
        keys = Keys(store)
        _check_exposure(options, keys)
        listener = stack.enter_context(listen(options.settings.host, options.settings.port))
        settings = replace(options.settings, port=listener.getsockname()[1])
        proxy = _start_proxy(options, settings, stack)
        log = options.log_file
        configure_logging(log)
        objects = _open_objects(settings, store)
        stack.callback(objects.close)
        program = ServiceApplication(Service(settings, store), objects, keys, options, proxy)
        supervisor = ChildProcess("supervisor", lambda: start_supervisor(settings))
        supervisor.start()
        stack.callback(supervisor.stop, settings.stop_seconds + 30)
        serve(program.application(), listener, lambda: _print_banner(program, log))
    _end_process()


def _end_process() -> None:
    """End without waiting for a thread that still works for a client, as Python's own exit would."""
    if any(not thread.daemon for thread in threading.enumerate() if thread is not threading.main_thread()):
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        logging.shutdown()
        os._exit(0)


@contextmanager
def _locked_home(home: Path) -> Iterator[None]:
    """Create and lock the home; UserError when it cannot be written or another server holds it."""
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = (home / "server.lock").open("a+", encoding="utf-8")
    except OSError as error:
        raise UserError(f"--home {home}: {error.strerror}; expected a folder that this user may write") from None
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            handle.seek(0)
            holder = handle.read(32).strip() or "?"
            raise UserError(
                f"--home {home}: the server with process id {holder} uses it; stop it or choose another --home"
            ) from None
        handle.truncate(0)
        handle.write(str(os.getpid()))
        handle.flush()
        yield


def _check_exposure(options: Options, keys: Keys) -> None:
    """Without access keys everyone who can connect may use this machine, so serve them on loopback only."""
    if options.is_loopback:
        return
    if options.no_auth:
        raise UserError(f"--no-auth: allowed on loopback only; other machines can reach --host {options.settings.host}")
    if not keys.usable():
        raise UserError(
            f"--host {options.settings.host}: other machines can reach it; first make a key: luthier keys create"
        )


def _start_proxy(options: Options, settings: ServiceSettings, stack: ExitStack) -> Proxy | None:
    if options.proxy_port is None:
        return None
    listener = stack.enter_context(listen(LOOPBACK, options.proxy_port, "--proxy-port"))
    target = {"0.0.0.0": LOOPBACK, "": LOOPBACK, "::": "::1"}.get(settings.host, settings.host)  # noqa: S104 - no bind
    proxy = Proxy(listener, Authority(settings.home / "proxy"), (target, settings.port))
    proxy.start()
    stack.callback(proxy.stop)
    return proxy


def _open_objects(settings: ServiceSettings, store: Store) -> ObjectStore:
    objects = EmbeddedObjectStore(
        store.engine, settings.home / "objects", (jumpstart_bucket.bucket(), sdk_defaults.bucket())
    )
    objects.sweep_every(SWEEP_SECONDS)
    return ForwardingObjectStore(settings.objects, objects) if settings.objects else objects


def _print_banner(program: ServiceApplication, log: Path | None) -> None:
    """Where the service runs, and what to do next."""
    settings = program.service.settings
    disabled = f"authentication is off: every caller acts as account {ACCOUNT}"
    authentication = "signed requests only" if program.requires_signatures else disabled
    command = ["luthier", "env"]
    if program.options.is_loopback and settings.host != DEFAULT_HOST:
        command += ["--host", settings.host]
    if settings.port != DEFAULT_PORT:
        command += ["--port", str(settings.port)]
    name = f"[{settings.host}]" if ":" in settings.host else settings.host
    lines = [
        f"luthier {__version__} at http://{name}:{settings.port} ({authentication})",
        f"home {settings.home}" + (f", log {log}" if log else ""),
        f'next, in the shell of your notebook or script: eval "$({shlex.join(command)})"',
    ]
    print("\n".join(lines), flush=True)  # noqa: T201


class ServiceApplication:
    """The running service: its HTTP application and its own routes."""

    def __init__(
        self, service: Service, objects: ObjectStore, keys: Keys, options: Options, proxy: Proxy | None
    ) -> None:
        self.service, self.objects, self.keys, self.options, self.proxy = service, objects, keys, options, proxy
        self.metrics = Metrics(service.store, self.heartbeat_age)
        self.audit_log = AuditLog(service.settings.home / "logs" / "audit.log")
        self._started = time.time()

    @property
    def requires_signatures(self) -> bool:
        """Whether requests have to be signed."""
        return not self.options.no_auth and self.keys.required()

    def application(self) -> Any:
        """The ASGI application of the one port."""
        authenticate = authenticator(self.keys, self.options.no_auth)
        gateway = Gateway(self.operate, KNOWN, authenticate, self.metrics.observe, self.audit)
        routes = {"/_luthier/health": self.health, "/_luthier/metrics": self.metrics_page,
                  "/_luthier/version": self.version, "/_luthier/": self.not_found}  # fmt: skip
        return application(gateway, routes)

    def operate(self, call: Call) -> dict[str, Any]:
        """Run the operation of a call."""
        return operate(call, self.service, self.objects)

    def audit(self, context: RequestContext, status: int) -> None:
        """Write the audit log, once there is a key."""
        if self.requires_signatures:
            self.audit_log.record(context, status)

    def heartbeat_age(self) -> float | None:
        """Seconds since the supervisor's last heartbeat; None when there was none since this process started."""
        try:
            heartbeat = heartbeat_file(self.service.settings.home).stat().st_mtime
        except FileNotFoundError:
            return None
        # A file's time may be a few milliseconds behind the clock's.
        return max(0.0, time.time() - heartbeat) if heartbeat > self._started - 0.05 else None

    # Routes

    def health(self, request: Request) -> Response:
        """200 while the store answers and the supervisor sends heartbeats, else 503."""
        try:
            with self.service.store.engine.connect() as connection:
                connection.execute(sa.select(1))
            store = "ok"
        except (sa.exc.SQLAlchemyError, LuthierError) as error:
            _log.warning("health: the store is unreachable: %s", error)
            store = "does not answer"
        age = self.heartbeat_age()
        supervisor = (
            "not started" if age is None else "ok" if age < HEARTBEAT_SECONDS else f"silent for {age:.0f} seconds"
        )
        is_ok = store == supervisor == "ok"
        report = {
            "status": "ok" if is_ok else "unwell",
            "version": __version__,
            "store": store,
            "supervisor": supervisor,
        }
        return _json(report, 200 if is_ok else 503)

    def metrics_page(self, request: Request) -> Response:
        return Response(200, {"Content-Type": CONTENT_TYPE}, self.metrics.page())

    def version(self, request: Request) -> Response:
        """What `luthier env` needs; no path. 403 for a browser, as for other unsigned requests."""
        try:
            check_origin(request, only_local=not self.requires_signatures)
        except WireError as error:
            return _json({"error": str(error)}, error.status)
        return _json({
            "version": __version__, "signatures": self.requires_signatures,
            "proxy": self.proxy.port if self.proxy else None,
            "certificate": self.proxy.authority.digest if self.proxy else "",
        })  # fmt: skip

    def not_found(self, request: Request) -> Response:
        return _json({"error": "expected /_luthier/health, /_luthier/metrics or /_luthier/version"}, 404)


def _json(content: Mapping[str, Any], status: int = 200) -> Response:
    return Response(status, {"Content-Type": "application/json"}, json.dumps(content).encode() + b"\n")


if __name__ == "__main__":
    entrypoint.run(main)
