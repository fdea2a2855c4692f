"""``python -P -m luthier.serving TARGET --socket PATH | --port N``: an endpoint's process.

TARGET is an artifact folder (model.tar.gz unpacked), a finished run, or a base model by name. It listens at once, on a
unix socket that its user alone may open or on the loopback address, loads meanwhile, and on SIGTERM ends with exit code
0 when it has answered what it was asked. It needs no secret and reads none.
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
from luthier.serving.app import Door

LOOPBACK = "127.0.0.1"
_LONGEST_PATH = 100  # bytes that every system takes as the name of a unix socket


def main(arguments: list[str]) -> None:
    """Serve until SIGTERM or Ctrl-C; LuthierError for what keeps it from serving."""
    asked = _parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    listening = _unix(Path(asked.socket)) if asked.socket else _loopback(asked.port)
    serving = Serving(asked)
    try:
        where = asked.socket or "http://{}:{}".format(*listening.getsockname())
        _say(f"listening on {where}")
        serving.run(listening)
    finally:
        listening.close()
        if asked.socket:
            Path(asked.socket).unlink(missing_ok=True)
    if serving.fault is not None:
        raise serving.fault
    if serving.loading.is_alive():  # in the middle of libraries that would not survive the interpreter's end
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


class Serving:
    """The HTTP server, and the thread that loads the model meanwhile."""

    def __init__(self, asked: argparse.Namespace) -> None:
        self.asked = asked
        self.fault: Exception | None = None
        self.door = Door(rows=asked.batch_rows, waiting=asked.waiting_rows, window=asked.window_ms / 1000, end=self.end)
        config = uvicorn.Config(
            self.door.app, log_config=None, access_log=False, lifespan="off", server_header=False, ws="none",
            timeout_keep_alive=75,
        )  # fmt: skip
        self.server = _Server(config)
        self.loading = threading.Thread(target=self._load, name="loading", daemon=True)

    def run(self, listening: socket.socket) -> None:
        """Until the server is told to end; what it was asked before is answered."""
        self.loading.start()
        asyncio.run(self.server.serve(sockets=[listening]))
        self.door.close()

    def end(self, reason: str) -> None:
        """End as failed, so that whoever started this process starts another."""
        self.fault = LuthierError(f"{self.asked.target}: {reason}")
        self.server.should_exit = True

    def _load(self) -> None:
        asked = self.asked
        try:
            served: Any = importlib.import_module("luthier.serving.served")  # torch: seconds, in which /ping answers
            model = served.Served.load(
                asked.target, asked.device, _say, called=asked.model, context=asked.context,
                batch_tokens=asked.batch_tokens,
            )  # fmt: skip
            self.door.open(model)
            _say(f"ready: {model.name} on {model.model.device}")
        except Exception as error:
            self.fault = error
            self.server.should_exit = True


class _Server(uvicorn.Server):
    """uvicorn, but a signal that ended it does not kill the process after it has ended well."""

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
    parser.add_argument("target", help="an artifact folder, a run, or a base model by name")
    place = parser.add_mutually_exclusive_group(required=True)
    place.add_argument("--socket", help="listen on this unix socket")
    place.add_argument("--port", type=int, help=f"listen on this port of {LOOPBACK}; 0 takes a free one")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    parser.add_argument("--model", default="", help="the name of the model in answers; its own where none is given")
    parser.add_argument("--context", type=_count, default=8_192, help="most tokens of a prompt and its answer")
    parser.add_argument("--batch-rows", type=_count, default=16, help="most rows of a batch")
    parser.add_argument("--batch-tokens", type=_count, default=32_768, help="most tokens of a batch")
    parser.add_argument("--waiting-rows", type=_count, default=256, help="most rows that may wait")
    parser.add_argument("--window-ms", type=float, default=5.0, help="how long a row waits for company")
    return parser.parse_args(arguments)


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def _loopback(port: int) -> socket.socket:
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((LOOPBACK, port))
    except (OSError, OverflowError) as error:
        listening.close()
        raise SettingError(f"--port {port}: {error}") from None
    listening.listen(2048)
    return listening


def _unix(path: Path) -> socket.socket:
    """A socket that this user alone may connect to; what a dead process left at `path` is removed."""
    if len(os.fsencode(path)) > _LONGEST_PATH:
        raise SettingError(f"--socket {path}: longer than {_LONGEST_PATH} bytes; choose a shorter path")
    _remove_stale(path)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        listening.bind(str(path))
    except OSError as error:
        listening.close()
        raise SettingError(f"--socket {path}: {error.strerror}") from None
    finally:
        os.umask(before)
    listening.listen(2048)
    return listening


def _remove_stale(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise SettingError(f"--socket {path}: {error.strerror}") from None
    if not stat.S_ISSOCK(mode):
        raise SettingError(f"--socket {path}: there is a file that is no socket; choose another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            path.unlink(missing_ok=True)
            return
    raise SettingError(f"--socket {path}: another process answers there")


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201


if __name__ == "__main__":
    entrypoint.run(lambda: main(sys.argv[1:]))
