"""``python -P -m luthier.serving TARGET --socket PATH | --port N``: the process of an endpoint.

TARGET is an artifact folder (model.tar.gz unpacked), a finished run, or a base model by name. The process listens on a
Unix socket that only its user can open, or on the loopback address, while the model loads. On SIGTERM it finishes the
requests it has accepted and exits with code 0. It needs no credentials.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib
import logging
import os
import signal
import socket
import stat
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvicorn

from luthier import entrypoint
from luthier.errors import LuthierError, SettingError
from luthier.serving.app import EndpointApp

LOOPBACK = "127.0.0.1"
_MAX_SOCKET_PATH = 100  # bytes; every operating system supports this many


def main(arguments: list[str]) -> None:
    """Serve until SIGTERM or Ctrl-C; LuthierError if the model or the address cannot be served."""
    options = _parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    listener = _listen_unix(Path(options.socket)) if options.socket else _listen_loopback(options.port)
    server = EndpointServer(options)
    try:
        address = options.socket or "http://{}:{}".format(*listener.getsockname())
        _say(f"listening on {address}")
        server.run(listener)
    finally:
        listener.close()
        if options.socket:
            Path(options.socket).unlink(missing_ok=True)
    if server.error is not None:
        raise server.error
    if server.loader.is_alive():  # inside libraries that crash when the interpreter shuts down under them
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


class EndpointServer:
    """The HTTP server, and the thread that loads the model."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.error: Exception | None = None
        self.endpoint = EndpointApp(
            max_rows=options.batch_rows,
            max_waiting=options.waiting_rows,
            max_delay=options.window_ms / 1000,
            on_broken=self.abort,
        )
        config = uvicorn.Config(
            self.endpoint.app, log_config=None, access_log=False, lifespan="off", server_header=False, ws="none",
            timeout_keep_alive=75,
        )  # fmt: skip
        self.server = _Server(config)
        self.loader = threading.Thread(target=self._load, name="loading", daemon=True)

    def run(self, listener: socket.socket) -> None:
        """Serve until the server exits; requests accepted before are finished."""
        self.loader.start()
        asyncio.run(self.server.serve(sockets=[listener]))
        self.endpoint.close()

    def abort(self, reason: str) -> None:
        """Exit with an error, so that the supervisor starts a new process."""
        self.error = LuthierError(f"{self.options.target}: {reason}")
        self.server.should_exit = True

    def _load(self) -> None:
        options = self.options
        try:
            module: Any = importlib.import_module("luthier.serving.model")  # imports torch: slow
            model = module.ServedModel.load(
                options.target, options.device, _say, served_name=options.model, context=options.context,
                batch_tokens=options.batch_tokens,
            )  # fmt: skip
            self.endpoint.set_model(model)
            _say(f"ready: {model.name} on {model.model.device}")
        except Exception as error:
            self.error = error
            self.server.should_exit = True


class _Server(uvicorn.Server):
    """uvicorn, without raising the signal again after a graceful shutdown."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m luthier.serving", allow_abbrev=False)
    parser.add_argument("target", help="an artifact folder, a run, or the name of a base model")
    address = parser.add_mutually_exclusive_group(required=True)
    address.add_argument("--socket", help="Unix socket to listen on")
    address.add_argument("--port", type=int, help=f"port of {LOOPBACK} to listen on; 0 chooses a free port")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    parser.add_argument("--model", default="", help="model name in responses; default: the target's own")
    parser.add_argument("--context", type=_count, default=8_192, help="maximum number of prompt and new tokens")
    parser.add_argument("--batch-rows", type=_count, default=16, help="maximum number of rows per batch")
    parser.add_argument("--batch-tokens", type=_count, default=32_768, help="maximum number of tokens per batch")
    parser.add_argument("--waiting-rows", type=_count, default=256, help="maximum number of rows in the queue")
    parser.add_argument("--window-ms", type=float, default=5.0, help="maximum time a row waits for others")
    return parser.parse_args(arguments)


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def _listen_loopback(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((LOOPBACK, port))
    except (OSError, OverflowError) as error:
        listener.close()
        raise SettingError(f"--port {port}: {error}") from None
    listener.listen(2048)
    return listener


def _listen_unix(path: Path) -> socket.socket:
    """Listen on a socket that only this user can open. A stale socket at `path` is removed."""
    if len(os.fsencode(path)) > _MAX_SOCKET_PATH:
        raise SettingError(f"--socket {path}: longer than {_MAX_SOCKET_PATH} bytes; use a shorter path")
    _remove_stale(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        listener.bind(str(path))
    except OSError as error:
        listener.close()
        raise SettingError(f"--socket {path}: {error.strerror}") from None
    finally:
        os.umask(before)
    listener.listen(2048)
    return listener


def _remove_stale(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise SettingError(f"--socket {path}: {error.strerror}") from None
    if not stat.S_ISSOCK(mode):
        raise SettingError(f"--socket {path}: exists and is not a socket; use another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            path.unlink(missing_ok=True)
            return
    raise SettingError(f"--socket {path}: another process listens there")


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201


if __name__ == "__main__":
    entrypoint.run(lambda: main(sys.argv[1:]))
