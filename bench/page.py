"""The page of measured speed, docs/performance.md, written from the files of other benches.

    python3 run.py bench page FILE.json [FILE.json ...]

Each file's results stand under the machine and the versions that they were measured with. Nothing is left out: rows
where a peer is ahead are listed once more at the end of their table, and what was not measured is named.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from bench.field import peers, table
from bench.field.options import ROOT

PAGE = ROOT / "docs" / "performance.md"
INTRODUCTION = """# Performance

Written by `python3 run.py bench page` from the files that `python3 run.py bench --json FILE` left; not by hand.

How it is measured. One process for each contender is kept alive, and exactly one of them takes a step at a time, by
turns, so that all of them meet the same machine. Luthier runs the job that `luthier tune` runs; Hugging Face's Trainer
and TRL's SFTTrainer run through their own `train()`, torchtune through its single-device recipes and LitGPT through its
fine-tuning scripts. All of them train on the very same tokens (GSM8K's rows) and on the same random weights of a real
shape, each library's own converter reading them, with as many rows a step and the same adapters. *Shipped* is a library
with its own default settings, *tuned* with what its documentation advises for speed: packing (TRL, torchtune), batches
of like length (Trainer), all rows of a step at a time instead of one by one (LitGPT); no activation checkpointing; bf16
compute. Where tcmalloc is installed, Luthier takes it, and the tuned peers are given it, too.

Not all of them compute the same. Where all weights train, the Trainer as shipped, torchtune and the tuned LitGPT update
them in bf16, which takes less memory and loses small updates; the others keep fp32 master weights. Of adapters,
torchtune and the tuned LitGPT keep bf16 ones. LitGPT ties no head to the embeddings: of a shape with a tied head it
holds, and where all weights train it updates, a second copy. torchtune's file for full training names an optimizer that
pages memory of a GPU; it runs with PyTorch's fused AdamW, as its LoRA recipe does.

Figures are medians of the steps after warm-up. `compl.` counts tokens that carry loss. A ratio is Luthier's figure over
the peer's in the same race: above 1 Luthier is faster, and memory below 1 is less. On a machine that others use, too,
seconds on the clock say little, and tokens for each second of the processor (CPU-s) say more; ratios of few steps carry
some 15 % of chance, those of completion tokens more, for each contender draws its own rows.
"""


def page(files: Sequence[Mapping[str, Any]]) -> str:
    """The whole page."""
    parts = [INTRODUCTION]
    for found in files:
        parts += _machine(found)
        for result in found.get("train", ()):
            parts += _train(result)
        parts += _rest(found)
        parts += _ranks(found["ranks"]) if "ranks" in found else ()
    parts += ["## Not measured", *_unmeasured(files)]
    return "\n".join(parts).rstrip() + "\n"


def _machine(found: Mapping[str, Any]) -> Iterator[str]:
    facts, asked = found["machine"], found["options"]
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    yield f"## {facts['date']}, {facts['processor']}"
    yield ""
    yield (
        f"{facts['cores']} of {facts['cores_of_machine']} cores, {asked['threads']} threads each, bf16 "
        f"by {facts['bf16_instructions']}, {facts['memory_gb']:.0f} GB, GPU: {facts['gpu'] or 'none'}; "
        f"{'tcmalloc' if asked['allocator'] else 'no tcmalloc'}; {facts['system']}, Python {facts['python']}, "
        f"{versions}."
    )
    load = facts["load_before"][0]
    if load > 0.5:
        yield (f"The machine was not idle: {load} processes wanted its {facts['cores_of_machine']} cores when this "
               "was noted (of training before it began, of the rest when it ended). Read the ratios, and the "
               "CPU-seconds.")  # fmt: skip
    yield ""


def _train(result: Mapping[str, Any]) -> Iterator[str]:
    yield f"### Training: {result['note']}, {result['method']}, {result['rows_per_step']} rows a step"
    yield ""
    agreement = result["agreement"]
    if "disagrees" in agreement:
        yield f"**Not Hugging Face's numbers:** {agreement['disagrees']}."
    else:
        yield (f"In the same run Luthier's step agreed with plain Hugging Face in fp32: the loss to "
               f"{agreement['loss']:.0e}, the worst of {agreement['tensors']} gradients to "
               f"{agreement['gradient']:.0e}.")  # fmt: skip
    yield ""
    yield from _markdown(table.rows(result["groups"]))
    facts = [found.get("facts", {}) for group in result["groups"] for found in group["contenders"].values()]
    ran = {f"{name} {each[name]}" for each in facts for name in _PEERS_OWN if name in each}
    if ran:
        yield f"The peers ran with {', '.join(sorted(ran))} and the same build of torch."
        yield ""
    sources = list(dict.fromkeys(group.get("source") for group in result["groups"]))
    if None in sources or len(sources) > 1:
        yield "Luthier's source may have changed between these races; only lines of the same race compare."
        yield ""
    ahead = [f"{name} ({words} {found['luthier_over_it'][key]:.2f}x)" for group in result["groups"]
             for name, found in group["contenders"].items() for key, words in _SIDES.items()
             if _is_ahead(found.get("luthier_over_it", {}), key)]  # fmt: skip
    yield "A peer is ahead in: " + (", ".join(ahead) if ahead else "nothing measured here") + "."
    yield ""
    for peer, reason in result["missing"].items():
        yield f"{peer} is left out: {reason}"
        yield ""


_PEERS_OWN = ("trl", "accelerate", "torchtune", "torchao", "litgpt", "lightning")  # Luthier has none of them
_SIDES = {"completion_tokens_per_second": "completion tok/s",
          "completion_tokens_per_cpu_second": "completion tok/CPU-s", "rss": "memory"}  # fmt: skip


def _is_ahead(against: Mapping[str, float], key: str) -> bool:
    value = against.get(key, 1.0)
    return value > 1 if key == "rss" else value < 1


def _rest(found: Mapping[str, Any]) -> Iterator[str]:
    if "prepare" in found:
        result = found["prepare"]
        yield f"### Preparing {result['rows']:,} rows, caches empty"
        yield ""
        yield from _markdown([["", "rows/s", "rows/CPU-s", "tokens", "peak GB"], *(
            [name, *((f"{each['rows_per_second']:,.0f}", f"{each['rows_per_cpu_second']:,.0f}", f"{each['tokens']:,}",
                      f"{each['rss'] / 1e9:.2f}") if "reason" not in each else (each["reason"], "", "", ""))]
            for name, each in result["contenders"].items())])  # fmt: skip
    if "generate" in found:
        result = found["generate"]
        yield f"### Answering {result['prompts']} prompts, {result['shape']}, bf16"
        yield ""
        yield f"In fp32, {result['equal']} of {result['checked']} answers were equal to Hugging Face's token for token."
        yield ""
        yield from _markdown([["", "tok/s", "tok/CPU-s", "peak GB"], *(
            [name, *((f"{each['tokens_per_second']:,.1f}", f"{each['tokens_per_cpu_second']:,.1f}",
                      f"{each['rss'] / 1e9:.2f}") if "reason" not in each else (each["reason"], "", ""))]
            for name, each in result["contenders"].items())])  # fmt: skip
    if "startup" in found:
        yield "### From the command to the end of the first step, caches warm"
        yield ""
        spent = found["startup"]["cpu_seconds"]
        yield from _markdown([["", "seconds", "least", "most", "CPU seconds"], *(
            [name, *(f"{value:.1f}" for value in (median(each), min(each), max(each), median(spent[name])))]
            for name, each in found["startup"]["seconds"].items())])  # fmt: skip


def _ranks(result: Mapping[str, Any]) -> Iterator[str]:
    yield f"### Data-parallel ranks of one thread, {result['shape']}, {result['rows']} rows a step and rank"
    yield ""
    yield from _markdown([["", "1 rank, tok/s", "2 ranks, tok/s", "ratio"], *(
        [method, *(f"{each['tokens_per_second'][size]:,.0f}" for size in "12"), f"{each['ratio']:.2f}x"]
        for method, each in result["methods"].items())])  # fmt: skip


def _unmeasured(files: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    done = {(result["shape"], result["method"]) for found in files for result in found.get("train", ())}
    wanted = [(shape, method) for shape in ("135m", "0.5b", "t5-small") for method in ("lora", "full")]
    lacking = [f"{shape} {method}" for shape, method in wanted if (shape, method) not in done]
    yield ""
    if lacking:
        yield f"- Training: {', '.join(lacking)}."
    for name in ("prepare", "generate", "startup", "ranks"):
        if not any(name in found for found in files):
            yield f"- `run.py bench {name}`."
    if not any(found["machine"]["gpu"] for found in files):
        yield "- Anything on a GPU: the same command adds the 8B shape where it finds one."
    raced = {group["peer"] for found in files for result in found.get("train", ()) for group in result["groups"]}
    lacking = [peer for peer in peers.known() if peer not in raced]
    if lacking:
        yield f"- Training beside {', '.join(lacking)}."


def _markdown(lines: Sequence[Sequence[str]]) -> Iterator[str]:
    for number, line in enumerate(lines):
        yield "| " + " | ".join(line) + " |"
        if not number:
            yield "|---" * len(line) + "|"
    yield ""


def main(arguments: list[str]) -> int:
    """Write the page from the files named."""
    if not arguments:
        print("run.py bench page: expected the JSON files to write it from", file=sys.stderr)
        return 2
    PAGE.write_text(page([json.loads(Path(name).read_text("utf-8")) for name in arguments]), "utf-8")
    print(f"written: {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
