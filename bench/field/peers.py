"""The venvs of peers and engines: what lives in which, made once with pip, and why one is not there.

A venv sees the packages of Luthier's own behind its own ones: pip finds torch there and installs no second build of
it, and all contenders compute with the same one. LUTHIER_PIP_ARGS is handed to pip, as run.py does.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LIST = ROOT / "bench" / "peers.txt"
_VARIABLE = re.compile(r"(?P<name>[A-Z_]+)=(?P<value>[^=].*)")
_SECTION = re.compile(r"\[(?P<venv>[^:\]]+):(?P<peers>[^\]]+)\]")


@dataclass(frozen=True, slots=True)
class Venv:
    """A venv of peers and what pip installs in it, in which environment; `removed` are uninstalled again."""

    name: str
    peers: tuple[str, ...]
    requirements: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    variables: tuple[tuple[str, str], ...] = ()

    @property
    def folder(self) -> Path:
        return ROOT / self.name

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"


def read(text: str) -> list[Venv]:
    """The sections of peers.txt or engines.txt. ValueError for a requirement that is not pinned, or in no section."""
    found: list[Venv] = []
    for line in (line.partition("#")[0].strip() for line in text.splitlines()):
        section = _SECTION.fullmatch(line)
        variable = _VARIABLE.fullmatch(line)
        if section:
            found.append(Venv(section["venv"].strip(), tuple(section["peers"].split())))
        elif found and variable:
            found[-1] = replace(found[-1], variables=(*found[-1].variables, (variable["name"], variable["value"])))
        elif found and line.startswith("-"):
            found[-1] = replace(found[-1], removed=(*found[-1].removed, line[1:]))
        elif line:
            if not found or line.count("==") != 1:
                raise ValueError(f"peers.txt: {line!r}: expected NAME==VERSION below a [venv: peers] line")
            found[-1] = replace(found[-1], requirements=(*found[-1].requirements, line))
    return found


def known() -> tuple[str, ...]:
    """The names of all peers."""
    return tuple(peer for venv in read(LIST.read_text("utf-8")) for peer in venv.peers)


def make(
    wanted: Sequence[str], say: Callable[[str], None], pins: Path | None = None
) -> tuple[dict[str, Path], dict[str, str]]:
    """Interpreters of the wanted peers, and of those that cannot be had, why; `pins`: another file than peers.txt."""
    there: dict[str, Path] = {}
    missing: dict[str, str] = {}
    for venv in read((pins or LIST).read_text("utf-8")):
        run_options = [peer for peer in venv.peers if peer in wanted]
        reason = _install(venv, say) if run_options else ""
        for peer in run_options:
            if reason:
                missing[peer] = reason
                say(f"{peer} is left out: {reason}")
            else:
                there[peer] = venv.python
    return there, missing


def _install(venv: Venv, say: Callable[[str], None]) -> str:
    """Make a venv unless exactly it is there; return what went wrong."""
    stamp = venv.folder / "installed.txt"
    changes = (*venv.removed, *map("=".join, venv.variables))
    key = hashlib.sha256("\n".join((*venv.requirements, *changes, sys.version, sys.prefix)).encode()).hexdigest()
    if stamp.exists() and stamp.read_text("utf-8") == key:
        return ""
    say(f"making {venv.name} ({', '.join(venv.requirements)}); once, minutes on a slow line")
    # Without pip: Luthier's own serves, also on a Debian whose Python cannot put one in.
    steps = [[sys.executable, "-m", "venv", "--clear", "--without-pip", str(venv.folder)]]
    steps += [[sys.executable, "-m", "pip", "--python", str(venv.python), "install", "-qq", *venv.requirements,
               *shlex.split(os.environ.get("LUTHIER_PIP_ARGS", ""))]]  # fmt: skip
    if venv.removed:
        steps += [[sys.executable, "-m", "pip", "--python", str(venv.python), "uninstall", "-qq", "-y", *venv.removed]]
    for number, command in enumerate(steps):
        environment = os.environ | dict(venv.variables)
        done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
        if done.returncode != 0:
            return _reason(done.stderr or done.stdout)
        if number == 0:
            _see_own(venv)
    stamp.write_text(key, "utf-8")
    return ""


def download(package: str, folder: Path, *pip_options: str) -> None:
    """Download one distribution of a package, without what it depends on. OSError with pip's reason."""
    command = [sys.executable, "-m", "pip", "download", "-qq", "--no-deps", "-d", str(folder), *pip_options, package,
               *shlex.split(os.environ.get("LUTHIER_PIP_ARGS", ""))]  # fmt: skip
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise OSError(f"{package}: {_reason(done.stderr or done.stdout)}")


def _see_own(venv: Venv) -> None:
    """Put Luthier's own packages behind the venv's."""
    own = sysconfig.get_path("purelib")
    place = sysconfig.get_path("purelib", vars={"base": str(venv.folder), "platbase": str(venv.folder)})
    (Path(place) / "beside.pth").write_text(own + "\n", "utf-8")


def _reason(text: str) -> str:
    """pip's own words for a failure, in a line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")]
    return ((errors or lines or ["pip failed and said nothing"])[-1])[:300]
