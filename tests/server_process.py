"""A real server process for tests: started on a free port in a home of its own, asked to end when the test is over."""

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
    """A running server and what it said when it started."""

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
        """Until /_luthier/health says 200."""
        deadline = time.monotonic() + READY_SECONDS
        said: Any = None
        while time.monotonic() < deadline and self.process.poll() is None:
            status, said = self.get("/_luthier/health")
            if status == 200:
                return
            time.sleep(0.05)
        raise AssertionError(f"not ready within {READY_SECONDS} s: {said}")

    def log(self) -> list[dict[str, Any]]:
        """What the server has logged."""
        return [json.loads(line) for line in (self.home / "logs" / "server.log").read_text("utf-8").splitlines()]

    def stop(self, number: int = signal.SIGTERM, seconds: float = 60) -> int:
        """Ask it to end; its exit code."""
        self.process.send_signal(number)
        return self.process.wait(seconds)


def command(home: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "luthier", "serve", "--port", "0", "--home", str(home), *arguments]


@contextmanager
def server(
    home: Path, *arguments: str, ready: bool = True, environment: Mapping[str, str] | None = None
) -> Iterator[ServerProcess]:
    """`luthier serve` as a process; killed at the end unless the test has stopped it."""
    surroundings = {**os.environ, "PYTHONWARNINGS": "error::ResourceWarning", **(environment or {})}
    process = subprocess.Popen(command(home, *arguments), stdout=subprocess.PIPE, text=True, env=surroundings)
    assert process.stdout is not None
    with process, process.stdout:
        try:
            greeting = [process.stdout.readline() for _ in range(3)]
            found = re.search(r":(\d+) ", greeting[0])
            assert found is not None, f"exit code {process.wait(30)}, said {greeting}"
            served = ServerProcess(process, home, int(found[1]), greeting)
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
