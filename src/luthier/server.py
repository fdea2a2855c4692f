"""The service's program: `python -P -m luthier.server`, its request (what `luthier serve` was given) on stdin.

It wires the rooms together and keeps them up: the store, the objects, the wire on one port with its own doors under
/_luthier/, the HTTPS proxy, and the supervisor as a child process. What any of them does is not told here.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shlex
import sys
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
from luthier.defaults import DEFAULT_PORT
from luthier.errors import LuthierError, SettingError, UserError
from luthier.jobs.settings import ServiceSettings
from luthier.jobs.store import Store
from luthier.objects.forwarding_store import ForwardingObjectStore
from luthier.objects.store import EmbeddedObjectStore, ObjectStore
from luthier.protocol.asgi import application
from luthier.protocol.call import ACCOUNT, Call
from luthier.protocol.gateway import Gateway
from luthier.protocol.message import Request, Response
from luthier.service import jumpstart_bucket, sdk_defaults
from luthier.service.child import Child
from luthier.service.devices import device, slots
from luthier.service.journal import open_journal
from luthier.service.keys import Keys, authenticator
from luthier.service.limits import limits, seconds
from luthier.service.listener import listen, serve
from luthier.service.metrics import CONTENT_TYPE, Metrics
from luthier.service.operations import KNOWN, operate
from luthier.service.proxy import Authority, Proxy
from luthier.service.supervisor_settings import start
from luthier.supervisor.loop import heartbeat_file

LOOPBACK = "127.0.0.1"
BEAT_SECONDS = 30.0  # without a sign of life, after which the supervisor counts as gone
SWEEP_SECONDS = 3600.0  # between two looks for what kills left in the object store
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Options:
    """What `luthier serve` was given: the settings that the rooms see, and what only the program needs.

    `proxy_port` is None without a proxy; `log` is a file, "-" for stderr, "" for HOME/logs/server.log.
    """

    settings: ServiceSettings
    proxy_port: int | None
    no_auth: bool
    log: str

    @classmethod
    def read(cls, request: Mapping[str, Any]) -> Options:
        """The request of `luthier serve`; SettingError for a value that makes no sense."""
        objects = request["objects"]
        where = urlsplit(objects)
        if objects and not (where.scheme in ("http", "https") and where.hostname):
            raise SettingError(f"--objects {objects}: expected http://HOST or https://HOST")
        settings = ServiceSettings(
            home=Path(request["home"]),
            host=request["host"],
            port=request["port"],
            database=request["database"],
            objects=objects,
            slots=slots(request["slots"]),
            stall_seconds=seconds(request["stall_seconds"], "--stall-seconds", 1),
            stop_seconds=seconds(request["stop_seconds"], "--stop-seconds", 0),
            serving_device=device(request["serve_on"], "--serve-on"),
            limits=limits(request["limits"]),
        )
        return cls(settings, request["proxy_port"], request["no_auth"], request["log"])

    @property
    def log_file(self) -> Path | None:
        """None for stderr."""
        if self.log == "-":
            return None
        return Path(self.log).expanduser().absolute() if self.log else self.settings.home / "logs" / "server.log"

    @property
    def loopback(self) -> bool:
        return self.settings.host in ("localhost", "::1") or self.settings.host.startswith("127.")


def main() -> None:
    """Serve until SIGTERM or SIGINT; every fault of the start is one line."""
    options = Options.read(json.load(sys.stdin))
    os.umask(0o077)  # a home that was there before may be open to others
    with ExitStack() as stack:
        stack.enter_context(_held(options.settings.home))
        store = Store.open(options.settings.database_url)
        stack.callback(store.close)
        keys = Keys(store)
        _check_reach(options, keys)
        listener = stack.enter_context(listen(options.settings.host, options.settings.port))
        settings = replace(options.settings, port=listener.getsockname()[1])
        proxy = _proxy(options, settings, stack)
        log = options.log_file
        open_journal(log)
        objects = _objects(settings, store)
        stack.callback(objects.close)
        program = Program(Service(settings, store), objects, keys, options, proxy)
        supervisor = Child("supervisor", lambda: start(settings))
        supervisor.start()
        stack.callback(supervisor.stop, settings.stop_seconds + 30)
        serve(program.application(), listener, lambda: _greet(program, log))


@contextmanager
def _held(home: Path) -> Iterator[None]:
    """The home, made and held for this server alone; UserError when it cannot be written or another server has it."""
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
                f"--home {home}: the server with process id {holder} uses it; stop that one or choose another --home"
            ) from None
        handle.truncate(0)
        handle.write(str(os.getpid()))
        handle.flush()
        yield


def _check_reach(options: Options, keys: Keys) -> None:
    """Whoever can reach an open service can use this machine, so beyond loopback there have to be keys."""
    if options.loopback:
        return
    if options.no_auth:
        raise UserError(f"--no-auth: only on loopback; --host {options.settings.host} can be reached by others")
    if not keys.usable():
        raise UserError(
            f"--host {options.settings.host}: others can reach it, and there is no key; first: luthier keys create"
        )


def _proxy(options: Options, settings: ServiceSettings, stack: ExitStack) -> Proxy | None:
    if options.proxy_port is None:
        return None
    listener = stack.enter_context(listen(LOOPBACK, options.proxy_port, "--proxy-port"))
    target = {"0.0.0.0": LOOPBACK, "": LOOPBACK, "::": "::1"}.get(settings.host, settings.host)  # noqa: S104 - no bind
    proxy = Proxy(listener, Authority(settings.home / "proxy"), (target, settings.port))
    proxy.start()
    stack.callback(proxy.stop)
    return proxy


def _objects(settings: ServiceSettings, store: Store) -> ObjectStore:
    objects = EmbeddedObjectStore(
        store.engine, settings.home / "objects", (jumpstart_bucket.bucket(), sdk_defaults.bucket())
    )
    objects.sweep_every(SWEEP_SECONDS)
    return ForwardingObjectStore(settings.objects, objects) if settings.objects else objects


def _greet(program: Program, log: Path | None) -> None:
    """What runs where, and what to do next."""
    settings = program.service.settings
    free = f"no keys are asked for: every caller is account {ACCOUNT}"
    signed = "signed requests only" if program.signatures else free
    words = ["luthier", "env"]
    if program.options.loopback and settings.host != LOOPBACK:
        words += ["--host", settings.host]
    if settings.port != DEFAULT_PORT:
        words += ["--port", str(settings.port)]
    name = f"[{settings.host}]" if ":" in settings.host else settings.host
    lines = [
        f"luthier {__version__} at http://{name}:{settings.port} ({signed})",
        f"home {settings.home}" + (f", log {log}" if log else ""),
        f'next, in the shell of your notebook or script: eval "$({shlex.join(words)})"',
    ]
    print("\n".join(lines), flush=True)  # noqa: T201


class Program:
    """The running service: its wire, its own doors, and how its supervisor is started."""

    def __init__(
        self, service: Service, objects: ObjectStore, keys: Keys, options: Options, proxy: Proxy | None
    ) -> None:
        self.service, self.objects, self.keys, self.options, self.proxy = service, objects, keys, options, proxy
        self.metrics = Metrics(service.store, self.beat_age)
        self._started = time.time()

    @property
    def signatures(self) -> bool:
        """Whether requests have to be signed."""
        return not self.options.no_auth and self.keys.required()

    def application(self) -> Any:
        """The ASGI application of the one port."""
        gateway = Gateway(self.operate, KNOWN, authenticator(self.keys, self.options.no_auth), self.metrics.observe)
        doors = {"/_luthier/health": self.health, "/_luthier/metrics": self.figures, "/_luthier/version": self.about,
                 "/_luthier/": self.nowhere}  # fmt: skip
        return application(gateway, doors)

    def operate(self, call: Call) -> dict[str, Any]:
        """Do what a call asks for."""
        return operate(call, self.service, self.objects)

    def beat_age(self) -> float | None:
        """Seconds since the supervisor's last sign of life; None when there was none since we started."""
        try:
            beat = heartbeat_file(self.service.settings.home).stat().st_mtime
        except FileNotFoundError:
            return None
        # A file's time may be a few milliseconds behind the clock's.
        return max(0.0, time.time() - beat) if beat > self._started - 0.05 else None

    # The doors

    def health(self, request: Request) -> Response:
        """200 while the store answers and the supervisor lives, else 503; says which."""
        try:
            with self.service.store.engine.connect() as connection:
                connection.execute(sa.select(1))
            store = "ok"
        except (sa.exc.SQLAlchemyError, LuthierError) as error:
            _log.warning("health: the store does not answer: %s", error)
            store = "does not answer"
        age = self.beat_age()
        supervisor = "not started" if age is None else "ok" if age < BEAT_SECONDS else f"silent for {age:.0f} seconds"
        good = store == supervisor == "ok"
        said = {"status": "ok" if good else "unwell", "version": __version__, "store": store, "supervisor": supervisor}
        return _json(said, 200 if good else 503)

    def figures(self, request: Request) -> Response:
        return Response(200, {"Content-Type": CONTENT_TYPE}, self.metrics.page())

    def about(self, request: Request) -> Response:
        """What `luthier env` has to know; where things lie is for callers on this machine only."""
        near = request.peer in (LOOPBACK, "::1", "")
        return _json({
            "version": __version__, "signatures": self.signatures, "proxy": self.proxy.port if self.proxy else None,
            "home": str(self.service.settings.home) if near else "",
        })  # fmt: skip

    def nowhere(self, request: Request) -> Response:
        return _json({"error": "expected /_luthier/health, /_luthier/metrics or /_luthier/version"}, 404)


def _json(content: Mapping[str, Any], status: int = 200) -> Response:
    return Response(status, {"Content-Type": "application/json"}, json.dumps(content).encode() + b"\n")


if __name__ == "__main__":
    entrypoint.run(main)
