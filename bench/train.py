"""Training steps in lock step: Luthier's own job beside the peers' own trainers, on the same tokens.

    python3 run.py bench train [--peers trl,hf,torchtune,litgpt] [--shape 135m] [--method lora,full] [--threads N]
                               [--json FILE]

Three contenders at most are alive: Luthier races each peer's two settings, as shipped and tuned. Its loss and
gradients are compared with plain Hugging Face's before. With a GPU and no --shape, the 8B shape is added.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from operator import truediv
from pathlib import Path
from statistics import median
from typing import Any

import torch

from bench.field import machine, matmul, options, peers, rows, shapes, table
from bench.field.lockstep import Contender, Entry, Record, race
from bench.field.options import ROOT, WORK, Options, say
from bench.field.shapes import SHAPES, Shape

DEFAULT_SHAPES = ("135m",)
STYLES = ("shipped", "tuned")
RUNNERS = {"hf": "trainer_run", "trl": "trainer_run", "torchtune": "torchtune_run", "litgpt": "litgpt_run"}
READS_PAIRS = ("hf",)  # peers with a trainer for models whose encoder reads the prompt


def run(run_options: Options) -> dict[str, Any]:
    """Race every shape and method that was asked for; print a table for each; return everything measured."""
    pythons, missing = peers.make(run_options.peers, say)
    names = run_options.shapes or (*DEFAULT_SHAPES, *(("8b",) if torch.cuda.is_available() else ()))
    found = []
    for name in names:
        for method in run_options.methods:
            if SHAPES[name].gpu and not torch.cuda.is_available():
                say(f"{name}: needs a GPU, and there is none here; left out")
                continue
            result = measure(run_options, SHAPES[name], method, pythons)
            result["missing"] = missing | result["missing"]
            found.append(result)
            show(result)
    return {"train": found}


def measure(run_options: Options, shape: Shape, method: str, pythons: dict[str, Path]) -> dict[str, Any]:
    """One shape and method."""
    work = WORK / f"train-{shape.name}-{method}"
    model = shapes.build(shape, rows.read(), WORK / "shapes")
    channel = rows.write_channel(work / "rows")
    prepared = rows.tokenize(channel, model, WORK / "cache")
    case: dict[str, Any] = {
        "work": str(work), "model": str(model), "channel": str(channel), "cache": str(WORK / "cache"),
        "method": method, "rows": run_options.rows or shape.rows, "pairs": shape.pairs,
        "tokens": shape.tokens * (run_options.rows or shape.rows) // shape.rows,
        "ids": str(rows.write_ids(prepared, work / "ids.jsonl", shape.pairs)),
    }  # fmt: skip
    say(f"{shape.name} {method}: {len(prepared.split.train):,} rows, {int(prepared.tokens.lengths.sum()):,} tokens, "
        f"{int(prepared.tokens.trained_counts.sum()):,} of them completions")  # fmt: skip
    agreement = agree(run_options, case, work)
    body, head = shapes.parameters(model)
    missing = {peer: "it trains no encoder-decoder" for peer in pythons if shape.pairs and peer not in READS_PAIRS}
    for peer, reason in missing.items():
        say(f"{peer} is left out: {reason}")
    groups = []
    for peer in [peer for peer in pythons if peer not in missing] or [""]:
        field = entries(run_options, case, work, peer, pythons)
        groups += [{"peer": peer, **each} for each in races(run_options, field, (body, head), method == "lora")]
    return {"shape": shape.name, "note": shape.note, "method": method, "rows_per_step": case["rows"],
            "agreement": agreement, "groups": groups, "missing": missing}  # fmt: skip


def races(run_options: Options, field: list[Entry], sizes: tuple[int, int], lora: bool) -> Iterator[dict[str, Any]]:
    """A race; contenders for which there was no room beside the others race once more, alone with Luthier."""
    before = machine.source()
    records = race(field, run_options.steps, run_options.warm_up, machine.memory_budget(), say, ["peak"])
    crowded = {record.name for record in records if record.crowded and len(field) > 2}
    raced = contenders([record for record in records if record.name not in crowded], *sizes, lora)
    yield {"source": before if machine.source() == before else None, "contenders": raced}  # None: edited while it raced
    if crowded:
        say(f"{', '.join(sorted(crowded))}: once more, alone with Luthier")
        yield from races(run_options, [field[0], *(each for each in field if each.name in crowded)], sizes, lora)


def agree(run_options: Options, case: dict[str, Any], work: Path) -> dict[str, Any]:
    """Compare with plain Hugging Face in a process of its own."""
    say("comparing loss and gradients with plain Hugging Face in fp32")
    contender = Contender(entry(run_options, "agreement", "agreement", Path(sys.executable), case, work))
    try:
        return contender.ready()
    finally:
        contender.end()


def entry(run_options: Options, name: str, module: str, python: Path, case: dict[str, Any], work: Path) -> Entry:
    """A contender's process: a module of bench/field with a case."""
    path = work / f"{name}.json"
    path.write_text(json.dumps(case), "utf-8")
    command = (str(python), "-m", f"bench.field.{module}", str(path))
    return Entry(name, command, run_options.environment(name.endswith("shipped")), ROOT, work / f"{name}.log")


def entries(run_options: Options, case: dict[str, Any], work: Path, peer: str, pythons: dict[str, Path]) -> list[Entry]:
    """Luthier and one peer's settings."""
    found = [entry(run_options, table.OWN, "luthier_run", Path(sys.executable), case, work)]
    for style in STYLES if peer else ():
        name = f"{peer}-{style}"
        found.append(entry(run_options, name, RUNNERS[peer], pythons[peer], case | {"style": name}, work))
    return found


def contenders(records: list[Record], body: int, head: int, lora: bool) -> dict[str, Any]:
    """What is stored of a race: figures, share of the peak measured in it, and ratios to Luthier."""
    peaks = [peak["bf16"] for record in records for peak in record.peaks]
    found: dict[str, Any] = {}
    for record in records:
        if not record.steps:
            found[record.name] = {"reason": record.reason}
            continue
        steps = record.steps
        figures = table.summary(record)
        item: dict[str, Any] = {"figures": figures, "facts": record.facts,
                                "steps": [[round(step.wall, 3), round(step.cpu, 3), step.tokens, step.completion_tokens]
                                          for step in steps]}  # fmt: skip
        if peaks:
            done = [matmul.operations(body, head, lora, step.tokens, step.completion_tokens) for step in steps]
            seconds = [step.wall if torch.cuda.is_available() else step.cpu for step in steps]
            item["bf16_peak"] = max(peaks)
            item["share_of_bf16_peak"] = median(map(truediv, done, seconds)) / max(peaks)
        found[record.name] = item
    own = found.get(table.OWN, {}).get("figures")
    for name, item in found.items():
        if own and name != table.OWN and "figures" in item:
            item["luthier_over_it"] = table.ratios(own, item["figures"])
    return found


def show(result: dict[str, Any]) -> None:
    """Print a result."""
    agreement = result["agreement"]
    print(f"\n{result['shape']} ({result['note']}), {result['method']}, {result['rows_per_step']} rows a step")
    if "disagrees" in agreement:
        print(f"NOT HUGGING FACE'S NUMBERS: {agreement['disagrees']}")
    else:
        print(
            f"agrees with plain Hugging Face in fp32: loss to {agreement['loss']:.1e}, the worst of "
            f"{agreement['tensors']} gradients to {agreement['gradient']:.1e}, on {agreement['rows']} rows"
        )
    print(table.render(table.rows(result["groups"])))
    for peer, reason in result["missing"].items():
        print(f"{peer}: left out: {reason}")


def main(arguments: list[str]) -> int:
    """Run; 1 where Luthier's numbers are not Hugging Face's, or it did not finish."""
    run_options = options.parse(arguments, SHAPES, (__doc__ or "").splitlines()[0])
    facts = machine.describe()
    print(machine.headline(facts))
    results = run(run_options)
    options.write(run_options, options.record(run_options, results) | {"machine": facts})
    failed = [result for result in results["train"] if "disagrees" in result["agreement"]
              or any("figures" not in group["contenders"][table.OWN] for group in result["groups"])]  # fmt: skip
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
