"""Data-parallel ranks: tokens a second of `luthier tune --ranks 2`, one thread each, beside those of one such rank.

    python3 run.py bench ranks [--shape 135m] [--method lora,full] [--rows N] [--steps N] [--json FILE]

Each rank has the rows of a step that the single one has, so a step of two holds twice as many. Whole runs by turns; the
first steps of each do not count. It needs as many idle cores as ranks.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from bench.field import options, rows, shapes
from bench.field.luthier_run import hyperparameters
from bench.field.options import ROOT, WORK, Options, say
from bench.field.shapes import SHAPES

ROUNDS = 2
SIZES = (1, 2)


def run(run_options: Options) -> dict[str, Any]:
    """Measure; print a table; return everything measured."""
    shape = SHAPES[run_options.shapes[0]] if run_options.shapes else SHAPES["135m"]
    model = shapes.build(shape, rows.read(), WORK / "shapes")
    work = WORK / "ranks"
    channel = rows.write_channel(work / "rows")
    found: dict[str, Any] = {}
    for method in run_options.methods:
        speeds: dict[int, list[float]] = {size: [] for size in SIZES}
        for _ in range(ROUNDS):
            for size in SIZES:
                took = speed(
                    run_options, {"method": method, "rows": run_options.rows or shape.rows}, size, model, channel
                )
                say(f"{method}, {size} rank(s): {median(took):,.0f} tokens/s")
                speeds[size] += took
        each = {str(size): median(took) for size, took in speeds.items()}
        found[method] = {"tokens_per_second": each, "ratio": each["2"] / each["1"], "steps": len(speeds[1])}
    result = {"shape": shape.note, "rows": run_options.rows or shape.rows, "cores": os.cpu_count(), "methods": found}
    show(result)
    return {"ranks": result}


def speed(run_options: Options, case: dict[str, Any], size: int, model: Path, channel: Path) -> list[float]:
    """Tokens a second of every step that counts, of one run."""
    out = channel.parent / f"run-{size}"
    shutil.rmtree(out, ignore_errors=True)
    settings = hyperparameters(case) | {"max_steps": str(run_options.warm_up + run_options.steps)}
    sets = (word for name, value in settings.items() for word in ("--set", f"{name}={value}"))
    command = [sys.executable, "-m", "luthier", "tune", str(channel), "--model", str(model), "--out", str(out),
               "--score-rows", "0", "--ranks", str(size), *sets]  # fmt: skip
    log = channel.parent / f"run-{size}.log"
    environment = run_options.environment(shipped=True) | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with open(log, "wb") as written:
        ended = subprocess.run(command, cwd=ROOT, env=environment, stdout=written, stderr=written, check=False)
    if ended.returncode:
        raise SystemExit(f"luthier tune --ranks {size} ended with {ended.returncode}; what it said: {log}")
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text("utf-8").splitlines()]
    steps = [line for line in lines if "loss" in line][run_options.warm_up - 1 :]
    return [
        (after["tokens"] - before["tokens"]) / (after["time"] - before["time"]) for before, after in pairwise(steps)
    ]


def show(result: dict[str, Any]) -> None:
    """Print a result."""
    print(f"\n{result['shape']}, {result['rows']} rows a step and rank, one thread a rank")
    for method, found in result["methods"].items():
        each = found["tokens_per_second"]
        print(f"{method:6} 1 rank {each['1']:,.0f} tok/s, 2 ranks {each['2']:,.0f} tok/s: {found['ratio']:.2f}x")


def main(arguments: list[str]) -> int:
    """Run."""
    run_options = options.parse(arguments, SHAPES, (__doc__ or "").splitlines()[0])
    options.write(run_options, options.record(run_options, run(run_options)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
