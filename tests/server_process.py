"""A real server process for tests: on a free port, with its own home folder, stopped after the test."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config

READY_SECONDS = 60


@dataclass(slots=True)
class ServerProcess:
    """A running server and the first lines it printed."""

    process: subprocess.Popen[str]
    home: Path
    port: int
    greeting: list[str]

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str) -> tuple[int, Any]:
        """Status and body of a GET, parsed where it is JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            body = answer.read()
            kind = answer.headers.get_content_type()
            return answer.status, json.loads(body) if kind == "application/json" else body.decode()
        finally:
            connection.close()

    def client(self, service: str, key: tuple[str, str] = ("luthier", "luthier"), **options: Any) -> Any:
        """A boto3 client of this server."""
        config = Config(retries={"total_max_attempts": 1}, proxies={}, **options)
        return boto3.client(
            service, endpoint_url=self.endpoint, region_name="us-west-2", aws_access_key_id=key[0],
            aws_secret_access_key=key[1], config=config,
        )  # fmt: skip

    def wait_ready(self) -> None:
        """Wait until /_luthier/health returns 200."""
        deadline = time.monotonic() + READY_SECONDS
        body: Any = None
        while time.monotonic() < deadline and self.process.poll() is None:
            status, body = self.get("/_luthier/health")
            if status == 200:
                return
            time.sleep(0.05)
        raise AssertionError(f"not ready within {READY_SECONDS} s: {body}")

    def log(self) -> list[dict[str, Any]]:
        """Return the server's log entries."""
        return [json.loads(line) for line in (self.home / "logs" / "server.log").read_text("utf-8").splitlines()]

    def stop(self, number: int = signal.SIGTERM, seconds: float = 60) -> int:
        """Send a signal; returns the exit code."""
        self.process.send_signal(number)
        return self.process.wait(seconds)


def command(home: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "luthier", "serve", "--port", "0", "--home", str(home), *arguments]


@contextmanager
def server(
    home: Path, *arguments: str, ready: bool = True, environment: Mapping[str, str] | None = None
) -> Iterator[ServerProcess]:
    """`luthier serve` as a process; killed at the end unless the test has stopped it."""
    variables = {**os.environ, "PYTHONWARNINGS": "error::ResourceWarning", **(environment or {})}
    process = subprocess.Popen(command(home, *arguments), stdout=subprocess.PIPE, text=True, env=variables)
    assert process.stdout is not None
    with process, process.stdout:
        try:
            greeting = [process.stdout.readline() for _ in range(3)]
            match = re.search(r":(\d+) ", greeting[0])
            assert match is not None, f"exit code {process.wait(30)}, printed {greeting}"
            served = ServerProcess(process, home, int(match[1]), greeting)
            if ready:
                served.wait_ready()
            yield served
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(60)
                except subprocess.TimeoutExpired:
                    process.kill()
