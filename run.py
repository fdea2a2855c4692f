"""Development commands that need only Python: each creates a virtual environment, installs Luthier and does its work.

    python3 run.py demo  [tune options]      tune the embedded model on examples/reviews and compare it with the base
    python3 run.py test  [pytest options]    install what the tests need and run them
    python3 run.py cover [pytest options]    run the tests with coverage and print a report
    python3 run.py check                     ruff check, ruff format --check, mypy --strict
    python3 run.py bench [NAME] [options]    benchmark Luthier against other libraries; bench list: list the benchmarks

The environment is .venv in this folder. LUTHIER_PIP_ARGS is passed to pip, for example to set a package index.
This file uses the standard library only, and parses on older Pythons so that it can print the supported versions.
"""

from __future__ import annotations

import ast
import concurrent.futures
import hashlib
import importlib.util
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

OLDEST, NEWEST = (3, 11), (3, 13)
ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "luthier-installed.json"


class Stop(Exception):
    """Ends run.py with one line."""


def say(line: str) -> None:
    print(f"run.py: {line}", flush=True)


def use_a_supported_python() -> None:
    """Restart under Python 3.11 to 3.13 if this is another version; Stop if none is found."""
    if OLDEST <= sys.version_info[:2] <= NEWEST:
        return
    for minor in range(NEWEST[1], OLDEST[1] - 1, -1):
        found = shutil.which(f"python3.{minor}")
        # A version manager's shim may be on PATH without that Python, so run it once.
        if found and subprocess.run([found, "-c", ""], check=False, capture_output=True).returncode == 0:
            os.execv(found, [found, str(Path(__file__).resolve()), *sys.argv[1:]])
    here = ".".join(map(str, sys.version_info[:2]))
    raise Stop(f"this is Python {here}; Luthier requires Python 3.11 to 3.13: install one, then: python3.13 run.py ...")


def make_venv() -> None:
    """Create .venv with its own pip, also on a Debian whose Python lacks ensurepip."""
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    code = "import sys, pip; print('%d.%d' % sys.version_info[:2])"
    if PYTHON.exists():
        existing = subprocess.run([str(PYTHON), "-c", code], check=False, capture_output=True, text=True)
        if existing.returncode == 0 and existing.stdout.strip() == version:
            return
        shutil.rmtree(VENV)
    say(f"creating {VENV.name} with Python {version}")
    if _has("ensurepip"):
        _run(sys.executable, "-m", "venv", str(VENV))
        return
    if not _has("pip") and os.geteuid() == 0 and shutil.which("apt-get"):
        say("this Python has neither ensurepip nor pip: apt-get install python3-venv")
        _run("apt-get", "update", "-q")
        _run("apt-get", "install", "-q", "-y", f"python{version}-venv")
        _run(sys.executable, "-m", "venv", str(VENV))
        return
    if not _has("pip"):
        raise Stop(f"this Python has neither ensurepip nor pip; install one: sudo apt-get install python{version}-venv")
    _run(sys.executable, "-m", "venv", "--without-pip", str(VENV))
    _run(sys.executable, "-m", "pip", "--python", str(PYTHON), "install", "-q", "pip")


def _has(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def install(dev: bool) -> None:
    """Install Luthier (and what its tests need) into .venv, unless that is already done."""
    files = (ROOT / "pyproject.toml", ROOT / "constraints.txt")
    key = hashlib.sha256(b"\0".join(path.read_bytes() for path in files) + str(ROOT).encode()).hexdigest()
    stored = json.loads(STAMP.read_text("utf-8")) if STAMP.exists() else {}
    if stored.get("key") == key and (stored.get("dev") or not dev):
        return
    extra = shlex.split(os.environ.get("LUTHIER_PIP_ARGS", ""))
    if not _nvidia() and not stored:
        extra = _without_cuda(extra)
    what = f"{ROOT}[dev]" if dev else str(ROOT)
    say("installing Luthier" + (" and what its tests need" if dev else "") + " (once; takes minutes on a slow line)")
    start = time.monotonic()
    # pip's warnings are about indexes, not about errors of the user; its errors still show.
    _run(str(PYTHON), "-m", "pip", "install", "-qq", "-c", str(ROOT / "constraints.txt"), "-e", what, *extra)
    STAMP.write_text(json.dumps({"key": key, "dev": dev}), "utf-8")
    say(f"installed in {time.monotonic() - start:.0f} s")
    if sys.platform == "linux" and not any(Path("/usr/lib").glob("*/libtcmalloc_minimal.so.4")):
        say("CPU training is faster with tcmalloc: sudo apt-get install libtcmalloc-minimal4")


def _nvidia() -> bool:
    return Path("/proc/driver/nvidia").exists() or shutil.which("nvidia-smi") is not None


def _without_cuda(extra: list[str]) -> list[str]:
    """Return pip arguments that install torch without CUDA packages if possible.

    PyTorch's CPU builds are on the download host of its home page, which its package metadata names. If they cannot be
    reached, the size of the CUDA build is printed before pip downloads it.
    """
    default = _planned(extra)
    if not _needs_cuda(default):
        return extra
    home = next((_home_page(item["metadata"]) for item in default if item["metadata"]["name"] == "torch"), "")
    cpu = [*extra, "--extra-index-url", f"https://download.{home}/whl/cpu"] if home else extra
    planned = _planned(cpu) if home else []
    if planned and not _needs_cuda(planned):
        say("no NVIDIA GPU found: installing PyTorch's CPU build")
        return cpu
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        size = sum(pool.map(_size, (item["download_info"]["url"] for item in default)))
    say(
        f"no NVIDIA GPU found, and pip finds only a CUDA build of torch ({len(default)} packages, "
        f"{f'{size / 1e9:.1f} GB' if size else 'several GB'}). It works but is large. If you have an index with a CPU "
        "build, press Ctrl-C and restart with LUTHIER_PIP_ARGS='--extra-index-url ADDRESS'"
    )
    return extra


def _planned(extra: list[str]) -> list[dict[str, Any]]:
    """Return what pip would install for the pinned torch; nothing if pip fails (the install then prints why)."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        pins = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
        torch = [line for line in pins if line.startswith("torch==")]
        plan = ["install", "-qq", "--dry-run", "--report", str(report), *torch, *extra]
        if subprocess.run([str(PYTHON), "-m", "pip", *plan], check=False, capture_output=True).returncode != 0:
            return []
        planned: list[dict[str, Any]] = json.loads(report.read_text("utf-8")).get("install", [])
        return planned


def _needs_cuda(planned: list[dict[str, Any]]) -> bool:
    return any(item["metadata"]["name"].startswith(("nvidia-", "cuda-", "triton")) for item in planned)


def _home_page(metadata: dict[str, Any]) -> str:
    """Return the host of a package's home page from its metadata; empty if there is none."""
    labelled = (entry.partition(", ") for entry in metadata.get("project_url", []))
    pages = [url for label, _, url in labelled if label.lower() == "homepage"]
    return urllib.parse.urlsplit(next(iter([*pages, metadata.get("home_page", "")]), "")).hostname or ""


def _size(url: str) -> int:
    """Return the size of a download in bytes; 0 if the server does not report it."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=5) as response:
            return int(response.headers.get("Content-Length") or 0)
    except (OSError, ValueError):
        return 0


def _run(*command: str) -> None:
    if subprocess.run(command, check=False).returncode != 0:
        raise Stop(f"command failed, see its output above: {' '.join(map(shlex.quote, command))}")


def become(*command: str, **variables: str) -> None:
    """Replace this process, so that signals reach the command and its exit code is returned."""
    os.chdir(ROOT)
    os.environ.update({name: os.environ.get(name, value) for name, value in variables.items()})
    sys.stdout.flush()
    os.execv(command[0], list(command))


def demo(options: list[str]) -> None:
    install(dev=False)
    out = Path("runs") / time.strftime("demo-%Y%m%d-%H%M%S")
    config = ROOT / "examples" / "reviews" / "settings.yaml"
    settings = ["--config", str(config.relative_to(ROOT))] if config.exists() else []
    command = ["tune", "examples/reviews", "--out", str(out), *settings, *options]
    say("luthier " + " ".join(map(shlex.quote, command)))
    become(str(PYTHON), "-m", "luthier", *command)


def install_programs() -> None:
    """Install PostgreSQL for the tests from Debian's packages; Stop if that is not possible."""
    if shutil.which("initdb") or any(Path("/usr/lib/postgresql").glob("*/bin/initdb")):
        return
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise Stop("the tests need PostgreSQL (initdb, pg_ctl); install it: sudo apt-get install postgresql")
    say("installing PostgreSQL for the tests: apt-get install postgresql")
    _run("apt-get", "update", "-q")
    _run("apt-get", "install", "-q", "-y", "--no-install-recommends", "postgresql")


# One thread per worker: more threads on the same cores only wait for each other.
TEST_VARIABLES = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def install_for_tests() -> None:
    # Creates the clients' environments at the same time; if one fails, it prints why, and its tests fail.
    with subprocess.Popen([str(PYTHON), str(ROOT / "tests" / "wire" / "clients.py")]):
        install(dev=True)
        install_programs()


def pytest_options(options: list[str]) -> list[str]:
    """Return `options` with the number of workers added, unless they set it."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = ["-n", str(min(cores, 4))] if cores > 1 and not any(item.startswith("-n") for item in options) else []
    return [*workers, *options]


def test(options: list[str]) -> None:
    install_for_tests()
    become(str(PYTHON), "-m", "pytest", *pytest_options(options), **TEST_VARIABLES)


def cover(options: list[str]) -> None:
    """Run the tests with coverage, of child processes too, and print the report."""
    install_for_tests()
    os.chdir(ROOT)
    os.environ.update({name: os.environ.get(name, value) for name, value in TEST_VARIABLES.items()})
    coverage = [str(PYTHON), "-m", "coverage"]
    subprocess.run([*coverage, "erase"], check=False)
    tests = subprocess.run([*coverage, "run", "-m", "pytest", *pytest_options(options)], check=False)
    subprocess.run([*coverage, "combine", "--quiet"], check=False)
    report = subprocess.run([*coverage, "report"], check=False)
    sys.exit(tests.returncode or report.returncode)


def check(options: list[str]) -> None:
    install(dev=True)
    os.chdir(ROOT)
    codes = [subprocess.run([str(PYTHON), "-m", *tool.split(), *options], check=False).returncode
             for tool in ("ruff check", "ruff format --check", "mypy")]  # fmt: skip
    sys.exit(max(map(abs, codes)))


def bench(options: list[str]) -> None:
    """Run a script of bench/, by default all.py; `list` lists the scripts."""
    scripts = {path.stem: path for path in sorted((ROOT / "bench").glob("*.py"))}
    name, rest = ("all", options) if not options or options[0].startswith("-") else (options[0], options[1:])
    if name == "list":
        for stem, path in scripts.items():
            words = (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").splitlines()
            print(f"{stem:24} {words[0] if words else ''}")
        return
    if name not in scripts:
        raise Stop(f"benchmark {name!r} not found; expected one of: {', '.join(scripts)}")
    install(dev=True)
    become(str(PYTHON), "-m", f"bench.{name}", *rest)


VERBS = {"demo": demo, "test": test, "cover": cover, "check": check, "bench": bench}


def main() -> int:
    verb = sys.argv[1] if len(sys.argv) > 1 else "help"
    if verb not in VERBS:
        print((__doc__ or "").strip())
        return 0 if verb in ("help", "-h", "--help") else 2
    try:
        use_a_supported_python()
        make_venv()
        VERBS[verb](sys.argv[2:])
    except Stop as stop:
        print(f"run.py: {stop}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
