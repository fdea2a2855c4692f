"""Start-up: seconds from `luthier tune` to the end of its first step beside TRL's script on the same rows, caches warm.

    python3 run.py bench startup [--shape 135m] [--threads N] [--json FILE]

A step has one row, so that what is measured is the way to it. By turns, after one run each that fills the caches. Both
load the same libraries; `--score-rows 0` leaves out scoring the base, which TRL's script does not do either.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from bench.field import options, peers, rows, shapes, table
from bench.field.luthier_run import hyperparameters
from bench.field.options import ROOT, WORK, Options, say
from bench.field.shapes import SHAPES

ROUNDS = 3
PATIENCE = 600.0
Took = tuple[float, float]  # wall and CPU seconds


def run(run_options: Options) -> dict[str, Any]:
    """Measure; print a table; return everything measured."""
    pythons, missing = peers.make([peer for peer in run_options.peers if peer == "trl"], say)
    work = WORK / "startup"
    model = shapes.build(shapes.first_causal(run_options.shapes), rows.read(), WORK / "shapes")
    channel = rows.write_channel(work / "rows")
    pairs = rows.write_pairs(channel, work / "pairs.jsonl")
    found: dict[str, list[Took]] = {}
    for number in range(ROUNDS + 1):
        timed = {table.OWN: luthier(run_options, model, channel, work)}
        if "trl" in pythons:
            timed["trl"] = trl(run_options, pythons["trl"], model, pairs, work)
        said = ", ".join(f"{name} {wall:.1f} s ({cpu:.1f} CPU)" for name, (wall, cpu) in timed.items())
        say(said + ("" if number else " (cold)"))
        for name, took in timed.items() if number else ():
            found.setdefault(name, []).append(took)
    result = {"seconds": {name: [wall for wall, _ in took] for name, took in found.items()},
              "cpu_seconds": {name: [cpu for _, cpu in took] for name, took in found.items()},
              "missing": missing}  # fmt: skip
    show(result)
    return {"startup": result}


def luthier(run_options: Options, model: Path, channel: Path, work: Path) -> Took:
    """From the command to the first line of its metrics."""
    out = work / "luthier-run"
    shutil.rmtree(out, ignore_errors=True)
    settings = hyperparameters({"method": "lora", "rows": 1})
    sets = (word for name, value in settings.items() for word in ("--set", f"{name}={value}"))
    command = [sys.executable, "-m", "luthier", "tune", str(channel), "--model", str(model), "--out", str(out),
               "--score-rows", "0", *sets]  # fmt: skip
    found: list[float] = []

    def stepped() -> bool:
        text = (out / "metrics.jsonl").read_text("utf-8") if (out / "metrics.jsonl").exists() else ""
        found.extend([float(json.loads(text.splitlines()[0])["time"])] if text.endswith("\n") else [])
        return bool(found)

    started, cpu = _until(stepped, command, run_options, work / "luthier.log")
    if not found:
        raise SystemExit(f"luthier took no step; what it said: {work / 'luthier.log'}")
    return found[0] - started, cpu


def trl(run_options: Options, python: Path, model: Path, pairs: Path, work: Path) -> Took:
    """From starting TRL's script to the end of its first step."""
    command = [str(python), "-m", "bench.field.trl_script", str(model), str(pairs), str(work / "trl")]
    log = work / "trl.log"
    started, cpu = _until(lambda: False, command, run_options, log)
    said = re.findall(r"first step at ([\d.]+)", log.read_text("utf-8"))
    if not said:
        raise SystemExit(f"TRL's script took no step; what it said: {log}")
    return float(said[0]) - started, cpu


def _until(done: Callable[[], bool], command: list[str], run_options: Options, log: Path) -> tuple[float, float]:
    """Run a command until `done` or until it ends; the time of day when it started, and the CPU seconds it took."""
    started = time.time()
    with open(log, "wb") as written:
        child = subprocess.Popen(
            command, cwd=ROOT, env=run_options.environment(shipped=True), stdout=written, stderr=written
        )
    ended = 0
    while not ended and not done() and time.time() - started < PATIENCE:
        time.sleep(0.02)
        ended, status, usage = os.wait4(child.pid, os.WNOHANG)
    if not ended:
        child.kill()
        _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    return started, usage.ru_utime + usage.ru_stime


def show(result: dict[str, Any]) -> None:
    """Print a result."""
    own, own_cpu = (median(result[key][table.OWN]) for key in ("seconds", "cpu_seconds"))
    print("\nfrom the command to the end of the first step, caches warm")
    for name, seconds in result["seconds"].items():
        cpu = median(result["cpu_seconds"][name])
        against = (
            ""
            if name == table.OWN
            else (f"  Luthier takes {own / median(seconds):.2f}x of it, {own_cpu / cpu:.2f}x of the CPU seconds")
        )
        spread = f"of {len(seconds)}: {min(seconds):.1f} to {max(seconds):.1f}; CPU {cpu:.1f} s"
        print(f"{name:10} {median(seconds):6.1f} s ({spread}){against}")
    for peer, reason in result["missing"].items():
        print(f"{peer}: left out: {reason}")


def main(arguments: list[str]) -> int:
    """Run."""
    run_options = options.parse(arguments, SHAPES, (__doc__ or "").splitlines()[0])
    options.write(run_options, options.record(run_options, run(run_options)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
