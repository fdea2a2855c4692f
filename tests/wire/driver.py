"""Real clients at work: each runs in a child process of its own environment, as in a shell after `luthier env`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from wire import clients
from wire.server import LiveServer

from luthier.service.sdk_defaults import DEFAULT_BUCKET

SCRIPTS = Path(__file__).resolve().parent / "scripts"
SECONDS = 600


class Driver:
    """Runs what users write, in `folder`, against a live server. AssertionError when it ends badly."""

    def __init__(self, server: LiveServer, folder: Path) -> None:
        self.server, self.folder = server, folder

    def script(self, venv: str, name: str, *arguments: str | Path, proxy: bool = False) -> dict[str, Any]:
        """Run a module of scripts/; its facts are the JSON object in the last line that it prints."""
        said = self.program(venv, SCRIPTS / name, *arguments, proxy=proxy)
        facts: dict[str, Any] = json.loads(said.strip().splitlines()[-1])
        return facts

    def make_default_bucket(self) -> None:
        """As the SageMaker SDK does it; two clients that do so at once get in each other's way, also on AWS."""
        self.shell("awscli", f"aws s3 ls s3://{DEFAULT_BUCKET} || aws s3 mb s3://{DEFAULT_BUCKET}")

    def program(self, venv: str, path: Path, *arguments: str | Path, proxy: bool = False) -> str:
        """Run a Python or JavaScript program; what it printed."""
        if venv == clients.JAVASCRIPT:
            command = [str(clients.node()), str(self._beside_packages(path))]
        else:
            command = [str(clients.python(venv)), "-P", str(path)]
        return self._run([*command, *map(str, arguments)], self.server.environment(proxy))

    def shell(self, venv: str, text: str, proxy: bool = False) -> str:
        """Run lines of a shell that stop at the first failure; what they printed.

        On PATH are a client's programs and `luthier`.
        """
        environment = self.server.environment(proxy)
        programs = (clients.python(venv).parent, Path(sys.executable).parent, environment["PATH"])
        return self._run(["sh", "-e", "-c", text], environment | {"PATH": ":".join(map(str, programs))})

    def _run(self, command: list[str], environment: dict[str, str]) -> str:
        name = " ".join(Path(word).name for word in command[:3])[:200]
        with subprocess.Popen(
            command, cwd=self.folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as child:
            try:
                said, complained = child.communicate(timeout=SECONDS)
            except subprocess.TimeoutExpired:
                child.kill()
                said, complained = child.communicate()
                complained += f"\nkilled after {SECONDS} s"
        assert child.returncode == 0, (
            f"{name}: {child.returncode}\n{said[-3000:]}\n{complained[-5000:]}\n{self.server.tail()}"
        )
        return said

    def _beside_packages(self, script: Path) -> Path:
        """A copy of a JavaScript module where it finds its packages: Node.js looks beside the file."""
        link = self.folder / "node_modules"
        if not link.is_symlink():
            link.symlink_to(clients.packages())
        copy = self.folder / script.name
        if copy != script:
            copy.write_text(script.read_text("utf-8"), "utf-8")
        return copy
