"""Data preparation: rows a second of Luthier's data room beside TRL's own preparation with packing.

    python3 run.py bench prepare [--prepare-rows 20000] [--shape 135m] [--threads N] [--json FILE]

Both go from the same JSONL rows to ids that are ready to train on, by turns, with empty caches. The peer tokenizes in
one process, as it does unless told otherwise.
"""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import median
from typing import Any

from bench.field import machine, options, peers, rows, shapes, table
from bench.field.lockstep import Entry, race
from bench.field.options import WORK, Options, say
from bench.field.shapes import SHAPES
from bench.train import entry

ROUNDS = 3


def run(run_options: Options) -> dict[str, Any]:
    """Measure; print a table; return everything measured."""
    pythons, missing = peers.make([peer for peer in run_options.peers if peer == "trl"], say)
    work = WORK / "prepare"
    model = shapes.build(shapes.first_causal(run_options.shapes), rows.read(), WORK / "shapes")
    tiny = shapes.build(SHAPES["tiny"], rows.read(), WORK / "shapes")
    channel = rows.write_channel(work / "rows", run_options.prepare_rows)
    case = {"work": str(work), "model": str(model), "channel": str(channel), "threads": run_options.threads,
            "tiny": str(tiny), "pairs": str(rows.write_pairs(channel, work / "pairs.jsonl"))}  # fmt: skip
    entries = [_entry(run_options, table.OWN, Path(sys.executable), case, work)]
    entries += [_entry(run_options, peer, python, case, work) for peer, python in pythons.items()]
    rounds = min(run_options.steps, ROUNDS)
    found: dict[str, Any] = {}
    for record in race(entries, rounds, 1, machine.memory_budget(), say):
        if not record.steps:
            found[record.name] = {"reason": record.reason}
            continue
        found[record.name] = {
            "rows_per_second": median(run_options.prepare_rows / step.wall for step in record.steps),
            "rows_per_cpu_second": median(run_options.prepare_rows / step.cpu for step in record.steps),
            "tokens": record.steps[-1].tokens, "completion_tokens": record.steps[-1].completion_tokens,
            "rss": max(step.rss for step in record.steps), "steps": rounds,
        }  # fmt: skip
    result = {"rows": run_options.prepare_rows, "contenders": found, "missing": missing}
    show(result)
    return {"prepare": result}


def _entry(run_options: Options, name: str, python: Path, case: dict[str, Any], work: Path) -> Entry:
    return entry(run_options, name, "prepare_run", python, case | {"style": name}, work)


def show(result: dict[str, Any]) -> None:
    """Print a result."""
    print(f"\npreparing {result['rows']:,} rows from an empty cache")
    print(table.render(table.speeds(result["contenders"], "rows")))
    for peer, reason in result["missing"].items():
        print(f"{peer}: left out: {reason}")


def main(arguments: list[str]) -> int:
    """Run; 1 where Luthier did not finish."""
    run_options = options.parse(arguments, SHAPES, (__doc__ or "").splitlines()[0])
    results = run(run_options)
    options.write(run_options, options.record(run_options, results))
    return 0 if "rows_per_second" in results["prepare"]["contenders"][table.OWN] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
