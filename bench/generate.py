"""Generation for scoring: Luthier's answers to 48 prompts beside Hugging Face's `generate` over sorted batches.

    python3 run.py bench generate [--shape 135m] [--threads N] [--json FILE]

Tokens a second, in bf16, by turns; and whether the answers in fp32 are the same, token for token.
"""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import median
from typing import Any

from bench.field import machine, options, rows, shapes, table
from bench.field.lockstep import race
from bench.field.options import WORK, Options, say
from bench.field.shapes import SHAPES
from bench.train import entry

ROUNDS, PROMPTS, MOST_TOKENS, EVERY = 3, 48, 96, 64
PEER = "hf"


def run(run_options: Options) -> dict[str, Any]:
    """Measure; print a table; return everything measured."""
    shape = shapes.first_causal(run_options.shapes)
    work = WORK / "generate"
    model = shapes.build(shape, rows.read(), WORK / "shapes", lively=True)
    prepared = rows.tokenize(rows.write_channel(work / "rows"), model, WORK / "cache")
    prompts = []
    for number in prepared.split.train[:PROMPTS].tolist():
        ids, trained = prepared.tokens.row(number)
        prompts.append(ids[: int(trained.argmax())].tolist())
    case = {"model": str(model), "prompts": prompts, "most": MOST_TOKENS,
            "stop_ids": list(range(0, shape.config["vocab_size"], EVERY))}  # fmt: skip
    entries = [entry(run_options, name, "generate_run", Path(sys.executable), case | {"style": name}, work)
               for name in (table.OWN, PEER)]  # fmt: skip
    records = {record.name: record for record in race(entries, ROUNDS, 1, machine.memory_budget(), say)}
    found: dict[str, Any] = {"shape": shape.name, "prompts": PROMPTS, "contenders": {}}
    for name, record in records.items():
        found["contenders"][name] = {"reason": record.reason} if not record.steps else {
            "tokens_per_second": median(step.tokens / step.wall for step in record.steps),
            "tokens_per_cpu_second": median(step.tokens / step.cpu for step in record.steps),
            "tokens": record.steps[-1].tokens, "rss": max(step.rss for step in record.steps), "steps": ROUNDS,
        }  # fmt: skip
    own, peer = (records[name].facts.get("answers") for name in (table.OWN, PEER))
    found["checked"] = len(own or ())
    found["equal"] = sum(one == other for one, other in zip(own or (), peer or (), strict=False))
    show(found)
    return {"generate": found}


def show(result: dict[str, Any]) -> None:
    """Print a result."""
    print(f"\nanswering {result['prompts']} prompts, {result['shape']}, bf16; in fp32 {result['equal']} of "
          f"{result['checked']} answers are equal token for token")  # fmt: skip
    print(table.render(table.speeds(result["contenders"], "tokens", 1)))


def main(arguments: list[str]) -> int:
    """Run; 1 where an answer differs or Luthier did not finish."""
    run_options = options.parse(arguments, SHAPES, (__doc__ or "").splitlines()[0])
    results = run(run_options)
    options.write(run_options, options.record(run_options, results))
    found = results["generate"]
    return 0 if found["checked"] and found["equal"] == found["checked"] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
