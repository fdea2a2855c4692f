"""The command line that the benches share, and what each of them is handed."""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.field import machine, peers
from luthier.allocator import preload

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / "build" / "bench"
METHODS = ("lora", "full")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The options of a benchmark. `steps`: the measured ones; `threads` of every contender."""

    peers: tuple[str, ...]
    shapes: tuple[str, ...]
    methods: tuple[str, ...]
    steps: int
    warm_up: int
    threads: int
    rows: int
    prepare_rows: int
    json: Path | None

    def environment(self, shipped: bool = False) -> dict[str, str]:
        """What a contender is started with, Luthier and peers alike; tcmalloc, which Luthier takes where it is
        installed, for all but the peers as `shipped`.
        """
        found = os.environ | {
            "OMP_NUM_THREADS": str(self.threads), "MKL_NUM_THREADS": str(self.threads), "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false" if self.threads == 1 else "true", "LUTHIER_CACHE": str(WORK / "cache"),
            "RAYON_NUM_THREADS": str(self.threads), "PYTHONPATH": str(ROOT),
            "HF_DATASETS_CACHE": str(WORK / "datasets"),
        }  # fmt: skip
        return found if shipped else found | preload(found)


def say(text: str) -> None:
    """Progress, apart from the results."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


def parse(arguments: list[str], shapes: dict[str, Any], description: str) -> Options:
    """Read the command line; a word that is not known ends the program with a line that says which are."""
    parser = argparse.ArgumentParser(prog="run.py bench", description=description)
    words = {"peers": peers.known(), "shape": tuple(shapes), "method": METHODS}
    every = ",".join(words["peers"])
    parser.add_argument("--peers", default=every, help=f"comma separated, of {every} (all); none: Luthier alone")
    parser.add_argument("--shape", default="", help=f"comma separated, of {', '.join(shapes)}")
    parser.add_argument("--method", default="lora,full", help="lora, full or both")
    parser.add_argument("--steps", type=int, default=8, help="measured steps of each contender (8)")
    parser.add_argument("--warm-up", type=int, default=2, help="steps before them (2)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of every contender (all cores)")
    parser.add_argument("--rows", type=int, default=0, help="rows of a step (the shape's own)")
    parser.add_argument("--prepare-rows", type=int, default=20_000, help="rows that `prepare` tokenizes (20,000)")
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    run_options = parser.parse_args(arguments)
    lists = {name: tuple(filter(None, getattr(run_options, name).split(","))) for name in words}
    lists["peers"] = () if run_options.peers == "none" else lists["peers"]
    for name, values in lists.items():
        for value in values:
            if value not in words[name]:
                parser.error(f"--{name} {value}: expected {', '.join(words[name])}")
    for name in ("steps", "warm_up", "threads", "prepare_rows"):
        if getattr(run_options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} {getattr(run_options, name)}: expected at least 1")
    return Options(
        peers=lists["peers"], shapes=lists["shape"], methods=lists["method"], steps=run_options.steps,
        warm_up=run_options.warm_up, threads=run_options.threads, rows=run_options.rows,
        prepare_rows=run_options.prepare_rows, json=run_options.json,
    )  # fmt: skip


def record(options: Options, results: dict[str, Any]) -> dict[str, Any]:
    """Everything that goes into the JSON file."""
    plain = {"peers": options.peers, "steps": options.steps, "warm_up": options.warm_up, "threads": options.threads,
             "allocator": preload(os.environ).get("LD_PRELOAD")}  # fmt: skip
    return {"machine": machine.describe(), "options": plain, **results}


def write(options: Options, results: dict[str, Any]) -> None:
    """Write the JSON file where one was asked for."""
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
        say(f"written: {options.json}")
