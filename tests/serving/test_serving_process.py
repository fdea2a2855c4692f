"""The serving process: listens at once, loads, serves and shuts down gracefully; invalid command lines."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from finished_runs import FinishedRuns

from luthier.errors import ModelNotFoundError, SettingError
from luthier.serving.__main__ import _listen_unix, main
from luthier.supervisor.archive import unpack


@contextmanager
def process(*arguments: str | Path, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """`python -P -m luthier.serving ARGUMENTS`, ended with the test."""
    started = subprocess.Popen(
        [sys.executable, "-P", "-W", "error::ResourceWarning", "-m", "luthier.serving", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment},
    )  # fmt: skip
    try:
        yield started
    finally:
        started.kill()
        started.communicate()


class _Unix(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("endpoint", timeout=60)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(str(self.path))


def send(connection: http.client.HTTPConnection, path: str, body: Any = None) -> tuple[int, Any]:
    try:
        sent = None if body is None else json.dumps(body)
        connection.request("GET" if sent is None else "POST", path, sent, {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def line_of(started: subprocess.Popen[str]) -> str:
    assert started.stdout is not None
    return started.stdout.readline().strip()


def test_an_artifact_on_a_unix_socket_from_start_to_end(finished: FinishedRuns, tmp_path: Path) -> None:
    folder, path = tmp_path / "unpacked", tmp_path / "s"
    unpack(finished.get().folder.artifact, folder)
    with process(folder, "--socket", path, "--model", "mine", "--device", "cpu") as started:
        assert line_of(started) == f"listening on {path}"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert send(_Unix(path), "/ping")[0] == 503
        assert line_of(started) == "ready: mine on cpu"
        assert send(_Unix(path), "/ping") == (200, {"status": "ready", "model": "mine"})
        fields = {"instruction": "a", "context": "b"}
        status, body = send(_Unix(path), "/invocations", {"fields": fields, "parameters": {"max_new_tokens": 3}})
        assert (status, len(body)) == (200, 1)

        # What is being answered when the signal comes is answered.
        long = {"inputs": "the cat", "parameters": {"max_new_tokens": 200, "temperature": 5.0}}
        answers: list[tuple[int, Any]] = []
        threads = [threading.Thread(target=lambda: answers.append(send(_Unix(path), "/invocations", long)))
                   for _ in range(3)]  # fmt: skip
        for thread in threads:
            thread.start()
        time.sleep(0.1)
        started.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join(30)
        assert [status for status, _ in answers] == [200] * 3
        assert started.wait(30) == 0
        assert not path.exists()
        assert started.stderr is not None
        assert "Traceback" not in started.stderr.read()


@pytest.mark.slow
def test_a_base_model_on_a_port_of_this_machine_alone() -> None:
    with process("luthier/tiny", "--port", "0", "--device", "cpu") as started:
        where = line_of(started)
        assert where.startswith("listening on http://127.0.0.1:")
        port = int(where.rpartition(":")[2])
        assert line_of(started) == "ready: luthier/tiny on cpu"
        status, body = send(
            http.client.HTTPConnection("127.0.0.1", port, timeout=60), "/invocations",
            {"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 3},
        )  # fmt: skip
        assert (status, body["usage"]["completion_tokens"]) == (200, 3)
        started.send_signal(signal.SIGINT)
        assert started.wait(30) == 0


def test_a_signal_while_it_loads_ends_it_well(tmp_path: Path) -> None:
    with process("luthier/tiny", "--socket", tmp_path / "s") as started:
        line_of(started)
        time.sleep(0.5)
        started.send_signal(signal.SIGTERM)
        assert started.wait(30) == 0


def test_a_model_that_cannot_be_loaded_ends_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ModelNotFoundError, match="unknown model 'no-such-model'"):
        main(["no-such-model", "--socket", str(tmp_path / "s")])
    assert capsys.readouterr().out == f"listening on {tmp_path / 's'}\n"
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("arguments", [[], ["--socket", "s", "--port", "1"], ["--port", "0", "--context", "0"]])
def test_a_command_line_that_makes_no_sense(arguments: list[str]) -> None:
    with process("luthier/tiny", *arguments) as started:
        _, errors = started.communicate(timeout=60)
        assert started.returncode == 2
        assert "usage: python -m luthier.serving" in errors


def test_sockets_that_are_left_used_or_none(tmp_path: Path) -> None:
    path = tmp_path / "s"
    first = _listen_unix(path)
    with pytest.raises(SettingError, match="another process listens there"):
        _listen_unix(path)
    first.close()  # as a killed process leaves it: the file stays
    _listen_unix(path).close()
    path.unlink()
    path.write_text("precious")
    with pytest.raises(SettingError, match="exists and is not a socket"):
        _listen_unix(path)
    assert path.read_text() == "precious"
    with pytest.raises(SettingError, match="No such file"):
        _listen_unix(tmp_path / "no" / "s")
    with pytest.raises(SettingError, match="longer than 100 bytes"):
        _listen_unix(tmp_path / ("x" * 100))


def test_a_port_that_is_taken() -> None:
    with socket.socket() as occupied:
        occupied.bind(("127.0.0.1", 0))
        occupied.listen()
        with process("luthier/tiny", "--port", str(occupied.getsockname()[1])) as started:
            _, errors = started.communicate(timeout=60)
    assert started.returncode == 2
    assert "luthier: error: --port" in errors
