"""Start-up: seconds from `luthier tune` to the end of its first step beside TRL's script on the same rows, caches warm.

    python3 run.py bench startup [--shape 135m] [--threads N] [--json FILE]

A step has one row, so that what is measured is the way to it. By turns, after one run each that fills the caches.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

from bench.field import options, peers, rows, shapes, table
from bench.field.luthier_run import hyperparameters
from bench.field.options import ROOT, WORK, Options, say
from bench.field.shapes import SHAPES

ROUNDS = 3
PATIENCE = 600.0


def run(asked: Options) -> dict[str, Any]:
    """Measure; print a table; return everything measured."""
    pythons, missing = peers.make([peer for peer in asked.peers if peer == "trl"], say)
    work = WORK / "startup"
    model = shapes.build(shapes.first_causal(asked.shapes), rows.read(), WORK / "shapes")
    channel = rows.write_channel(work / "rows")
    pairs = rows.write_pairs(channel, work / "pairs.jsonl")
    found: dict[str, list[float]] = {}
    for number in range(ROUNDS + 1):
        timed = {table.OWN: luthier(asked, model, channel, work)}
        if "trl" in pythons:
            timed["trl"] = trl(asked, pythons["trl"], model, pairs, work)
        say(", ".join(f"{name} {seconds:.1f} s" for name, seconds in timed.items()) + ("" if number else " (cold)"))
        for name, seconds in timed.items() if number else ():
            found.setdefault(name, []).append(seconds)
    result = {"seconds": found, "missing": missing}
    show(result)
    return {"startup": result}


def luthier(asked: Options, model: Path, channel: Path, work: Path) -> float:
    """Seconds from the command to the first line of its metrics."""
    out = work / "luthier-run"
    shutil.rmtree(out, ignore_errors=True)
    settings = hyperparameters({"method": "lora", "rows": 1})
    sets = (word for name, value in settings.items() for word in ("--set", f"{name}={value}"))
    command = [sys.executable, "-m", "luthier", "tune", str(channel), "--model", str(model), "--out", str(out),
               "--score-rows", "0", *sets]  # fmt: skip
    started = time.time()
    with open(work / "luthier.log", "wb") as log:
        child = subprocess.Popen(command, cwd=ROOT, env=asked.environment(), stdout=log, stderr=log)
    try:
        while time.time() - started < PATIENCE and child.poll() is None:
            text = (out / "metrics.jsonl").read_text("utf-8") if (out / "metrics.jsonl").exists() else ""
            if text.endswith("\n"):
                return float(json.loads(text.splitlines()[0])["time"]) - started
            time.sleep(0.02)
    finally:
        child.kill()
        child.wait()
    raise SystemExit(f"luthier took no step; what it said: {work / 'luthier.log'}")


def trl(asked: Options, python: Path, model: Path, pairs: Path, work: Path) -> float:
    """Seconds from starting TRL's script to the end of its first step."""
    command = [str(python), "-m", "bench.field.trl_script", str(model), str(pairs), str(work / "trl")]
    started = time.time()
    done = subprocess.run(command, cwd=ROOT, env=asked.environment(), capture_output=True, text=True, check=False)
    said = [line for line in done.stdout.splitlines() if line.startswith("first step at ")]
    if not said:
        raise SystemExit(f"TRL's script took no step: {done.stderr.strip().splitlines()[-1:]}")
    return float(said[0].split()[-1]) - started


def show(result: dict[str, Any]) -> None:
    """Print a result."""
    own = median(result["seconds"][table.OWN])
    print("\nfrom the command to the end of the first step, caches warm")
    for name, seconds in result["seconds"].items():
        against = "" if name == table.OWN else f"  Luthier takes {own / median(seconds):.2f}x of it"
        spread = f"of {len(seconds)}: {min(seconds):.1f} to {max(seconds):.1f}"
        print(f"{name:10} {median(seconds):6.1f} s ({spread}){against}")
    for peer, reason in result["missing"].items():
        print(f"{peer}: left out: {reason}")


def main(arguments: list[str]) -> int:
    """Run."""
    asked = options.parse(arguments, SHAPES, (__doc__ or "").splitlines()[0])
    options.write(asked, options.record(asked, run(asked)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
