"""Peak memory and rate of preparing a 200 MB JSONL file: ``python bench/prepare_memory.py [--megabytes N]``.

A file of made-up rows is written to a temporary folder, and `luthier inspect` run on it as a child process with an
empty cache. Printed: the child's peak resident memory (the promise: 1.5 GB, imports included) and its rows a second.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PROMISE = 1.5e9  # bytes


def write_rows(path: Path, size: int, seed: int = 0) -> int:
    """Write about `size` bytes of rows; return how many. One row in twenty repeats an earlier one."""
    draw = random.Random(seed)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9))) for _ in range(20_000)]
    written = rows = 0
    before: list[str] = []
    with open(path, "w", encoding="utf-8") as handle:
        while written < size:
            row = {
                "instruction": " ".join(draw.choices(words, k=draw.randint(8, 24))) + "?",
                "context": " ".join(draw.choices(words, k=draw.randint(0, 60))),
                "response": " ".join(draw.choices(words, k=draw.randint(3, 60))) + f". {rows}",
            }
            line = json.dumps(row) + "\n"
            if before and draw.random() < 0.05:
                line = draw.choice(before)
            elif len(before) < 1000:
                before.append(line)
            written += handle.write(line)
            rows += 1
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="peak memory and rate of preparing a large JSONL file")
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--model", default="luthier/tiny")
    run_options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        data.mkdir()
        rows = write_rows(data / "rows.jsonl", run_options.megabytes * 1_000_000)
        request: dict[str, Any] = {
            "channels": {"training": str(data)},
            "model": run_options.model,
            "kind": "auto",
            "hyperparameters": {},
            "json": True,
        }
        (Path(folder) / "request.json").write_text(json.dumps(request), "utf-8")
        command = [sys.executable, "-m", "luthier.data", "inspect", "--request", str(Path(folder) / "request.json")]
        environment = os.environ | {"LUTHIER_CACHE": str(Path(folder) / "cache")}
        started = time.monotonic()
        with open(Path(folder) / "answer.json", "wb") as answer:
            child = subprocess.Popen(command, env=environment, stdout=answer)
            _, status, usage = os.wait4(child.pid, 0)
        seconds = time.monotonic() - started
        if status:
            sys.exit(os.waitstatus_to_exitcode(status))
        answered = json.loads((Path(folder) / "answer.json").read_text("utf-8"))
    peak = usage.ru_maxrss * 1024  # Linux counts kilobytes
    verdict = "kept" if peak <= PROMISE else "BROKEN"
    print(f"{run_options.megabytes} MB, {rows:,} rows, {answered['tokens']:,} tokens")
    print(f"{seconds:.1f} s, {rows / seconds:,.0f} rows/s")
    print(f"peak {peak / 1e9:.2f} GB resident; the promise of {PROMISE / 1e9:.1f} GB is {verdict}")
    sys.exit(0 if peak <= PROMISE else 1)


if __name__ == "__main__":
    main()
