"""A live service for the real clients: `luthier serve` as an own process, and what `luthier env` makes of a shell."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType

START_SECONDS, STOP_SECONDS = 60, 60
_ADDRESS = re.compile(r"http://127\.0\.0\.1:(\d+)")


class LiveServer:
    """`luthier serve` on a free port with a home below `folder`; ready when its health door says so.

    `models` is what $LUTHIER_MODELS is to it. With `signed` it has an access key, which its users then sign with.
    RuntimeError, with the end of its log, when it does not start or died.
    """

    def __init__(self, folder: Path, models: Path, signed: bool = False) -> None:
        self.folder, self.home, self.log = folder, folder / "home", folder / "serve.log"
        self.key: dict[str, str] = {}
        self._environments: dict[bool, dict[str, str]] = {}
        self.user = folder / "user"
        self.user.mkdir(parents=True)
        command = [sys.executable, "-m", "luthier", "serve", "--port", "0", "--home", str(self.home), "--slots", "cpu"]
        own = {"LUTHIER_MODELS": str(models), "LUTHIER_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1",
               "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}  # fmt: skip
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env=self._plain() | own, start_new_session=True
            )
        try:
            self.port = self._port()
            if signed:
                said = self._luthier(self._plain(), "keys", "create", "--home", str(self.home))
                self.key = dict(re.findall(r"^export (\w+)=(\S+)$", said, re.MULTILINE))
        except BaseException:
            self.stop()
            raise

    def __enter__(self) -> LiveServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def environment(self, proxy: bool = False) -> dict[str, str]:
        """A user's environment after `eval "$(luthier env)"`, in a home folder without any AWS configuration."""
        if proxy not in self._environments:
            self._environments[proxy] = self._shell(proxy)
        return dict(self._environments[proxy])

    def check(self) -> None:
        """RuntimeError when the server has died."""
        if self.process.poll() is not None:
            raise RuntimeError(f"luthier serve ended with {self.process.returncode}:\n{self.tail()}")

    def tail(self, lines: int = 20) -> str:
        """The end of what the server and its own logs said, without the requests that went well."""
        said = ""
        for file in (self.log, *sorted((self.home / "logs").glob("*.log"))):
            kept = [line for line in file.read_text("utf-8", "replace").splitlines() if '"status": 200' not in line]
            said += "\n".join((f"--- {file.name}", *kept[-lines:], ""))
        return said

    def stop(self) -> None:
        """SIGTERM, as an operator stops it; RuntimeError when it has to be killed."""
        self.process.terminate()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            raise RuntimeError(f"luthier serve did not stop in {STOP_SECONDS} s:\n{self.tail()}") from None

    def _plain(self) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ}
        return kept | {"HOME": str(self.user)}

    def _port(self) -> int:
        """Wait for the greeting, which names the port, and for health."""
        end = time.monotonic() + START_SECONDS
        said = ""
        while time.monotonic() < end:
            self.check()
            found = _ADDRESS.search(self.log.read_text("utf-8", "replace"))
            if found:
                try:
                    with urllib.request.urlopen(f"{found[0]}/_luthier/health", timeout=5) as answer:
                        if answer.status == 200:
                            return int(found[1])
                except urllib.error.HTTPError as error:
                    said = error.read().decode(errors="replace")
                    error.close()
                except OSError as error:
                    said = str(error)
            time.sleep(0.1)
        raise RuntimeError(f"luthier serve was not ready in {START_SECONDS} s ({said}):\n{self.tail()}")

    def _shell(self, proxy: bool) -> dict[str, str]:
        """What a shell's variables are after `luthier env`."""
        before = self._plain() | self.key
        lines = self._luthier(before, "env", "--port", str(self.port), "--home", str(self.home), *["--proxy"] * proxy)
        show = [sys.executable, "-c", "import json, os; print(json.dumps(dict(os.environ)))"]
        command = ["sh", "-c", f'eval "$LINES"; unset LINES; {shlex.join(show)}']
        done = subprocess.run(command, capture_output=True, text=True, env=before | {"LINES": lines}, check=True)
        found: dict[str, str] = json.loads(done.stdout)
        return found

    def _luthier(self, environment: dict[str, str], *words: str) -> str:
        """What a command of Luthier's prints. RuntimeError when it fails."""
        command = [sys.executable, "-m", "luthier", *words]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"luthier {' '.join(words)}: {done.stderr or done.stdout}")
        return done.stdout
