"""Artefacts in other engines: greedy tokens of full, merged and adapter exports beside Luthier's own, on the CPU.

    python3 run.py bench engines [--engines transformers,ctranslate2,openvino,mlx,onnxruntime,llama-cpp]
                                 [--models tiny,smollm2,llama3,...] [--threads N] [--json FILE] [--page]

Each engine runs in a venv of its own with pinned versions (bench/engines.txt); what it refuses is reported in its own
words. An engine whose tokens differ is compared with copies of the model without its rope_scaling, its sliding_window,
its adapter's scale, ...: equal to one of these, it ignores that. --page writes the table to docs/deploy.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from bench.field import engine_report, machine, peers
from bench.field.engine_models import BASES, FORMAT, NEW_TOKENS, Artefact, make
from bench.field.options import ROOT, WORK, say

PINS = ROOT / "bench" / "engines.txt"
PAGE = ROOT / "docs" / "deploy.md"
CACHE = WORK / "engines"
ANY_TOKENIZER = ROOT / "tests" / "llama_cpp_convert.py"
PATIENCE = 1200  # seconds that an engine may take for one artefact


def engine_names() -> tuple[str, ...]:
    """The engines in engines.txt."""
    return tuple(engine for venv in peers.read(PINS.read_text("utf-8")) for engine in venv.peers)


def run(engines: Sequence[str], bases: Sequence[str], threads: int) -> dict[str, Any]:
    """Make the venvs and the artefacts, open each of these in each engine; return everything measured."""
    pythons, missing = peers.make(engines, say, PINS)
    torch.set_num_threads(threads)
    os.environ["LUTHIER_CACHE"] = str(CACHE / "cache")
    work = CACHE / "work"
    shutil.rmtree(work, ignore_errors=True)
    results: list[dict[str, Any]] = []
    for name in bases:
        say(f"{name}: {BASES[name].note}")
        try:
            artefacts = make(BASES[name], CACHE / f"bases-{FORMAT}", work)
        except Exception as error:  # the others go on
            missing[name] = str(error).splitlines()[0]
            say(f"{name} is left out: {missing[name]}")
            continue
        for artefact in artefacts:
            results += [open_in(engine, python, artefact, work / "engines", threads)
                        for engine, python in pythons.items()]  # fmt: skip
    return {"results": results, "missing": missing}


def open_in(engine: str, python: Path, artefact: Artefact, work: Path, threads: int) -> dict[str, Any]:
    """One artefact in one engine: what it answered, beside Luthier's tokens."""
    folder = work / f"{engine}-{artefact.base}-{artefact.form}"
    folder.mkdir(parents=True)
    names = ("model", "adapter", "prompts", "texts", "contents", "stops")
    request = {name: value for name, value in asdict(artefact).items() if name in names}
    request |= {"work": str(folder / "files"), "tokens": NEW_TOKENS, "threads": threads}
    (folder / "files").mkdir()
    if engine == "llama-cpp":
        request["converter"] = {"sources": str(llama_cpp_sources()), "any_tokenizer": str(ANY_TOKENIZER)}
    (folder / "request.json").write_text(json.dumps(request, default=str), "utf-8")
    program = f"bench.engine_programs.{engine.replace('-', '_')}_program"
    command = [str(python), "-m", program, str(folder / "request.json"), str(folder / "answer.json")]
    found: dict[str, Any] = {"engine": engine, "base": artefact.base, "form": artefact.form}
    with open(folder / "log.txt", "wb") as log:
        try:
            done = subprocess.run(command, stdout=log, stderr=log, env=environment(threads), cwd=ROOT, timeout=PATIENCE)
            reason = f"ended with code {done.returncode}"
        except subprocess.TimeoutExpired:
            reason = f"no answer after {PATIENCE} s"
    shutil.rmtree(folder / "files")
    if (folder / "answer.json").is_file():
        found |= engine_report.compare(artefact, json.loads((folder / "answer.json").read_text("utf-8")))
    else:
        found |= {"errors": {"program": f"{reason}: {_last_line(folder / 'log.txt')}"}}
    say(f"{engine}, {artefact.base} {artefact.form}: {engine_report.verdict(found)}")
    return found


def environment(threads: int) -> dict[str, str]:
    """An engine's environment: no network, nothing of Luthier's."""
    names = ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH", "TMPDIR")
    found = {name: value for name, value in os.environ.items() if name in names}
    return found | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def llama_cpp_sources() -> Path:
    """The folder of llama.cpp's sources in llama-cpp-python's, downloaded once."""
    pin = next(line for venv in peers.read(PINS.read_text("utf-8")) for line in venv.requirements
               if line.startswith("llama-cpp-python"))  # fmt: skip
    folder = CACHE / pin.replace("==", "-")
    if not (folder / "vendor").is_dir():
        peers.download(pin, CACHE / "downloads", "--no-binary", ":all:")
        with tarfile.open(next((CACHE / "downloads").glob("llama_cpp_python-*.tar.gz"))) as archive:
            archive.extractall(CACHE, filter="data")
        next(CACHE.glob("llama_cpp_python-*")).rename(folder)
    return folder / "vendor" / "llama.cpp"


def _last_line(path: Path) -> str:
    lines = [line for line in path.read_text("utf-8", "replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it printed nothing"


def main(arguments: list[str]) -> int:
    """Run, print the table, write the files that were asked for."""
    words = {"engines": engine_names(), "models": tuple(BASES)}
    parser = argparse.ArgumentParser(prog="run.py bench engines", description=(__doc__ or "").splitlines()[0])
    for name, known in words.items():
        parser.add_argument(f"--{name}", default=",".join(known), help=f"comma separated, of {', '.join(known)} (all)")
    parser.add_argument("--threads", type=int, default=1, help="of every engine (1)")
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    parser.add_argument("--page", action="store_true", help="write the table to docs/deploy.md")
    parsed = parser.parse_args(arguments)
    chosen = {name: tuple(filter(None, getattr(parsed, name).split(","))) for name in words}
    for name, values in chosen.items():
        for value in values:
            if value not in words[name]:
                parser.error(f"--{name} {value}: expected {', '.join(words[name])}")
    if parsed.threads < 1:
        parser.error(f"--threads {parsed.threads}: expected at least 1")
    facts = machine.describe()
    found = {"machine": facts, "threads": parsed.threads, **run(chosen["engines"], chosen["models"], parsed.threads)}
    table = engine_report.render(found)
    print(table)
    if parsed.json:
        parsed.json.parent.mkdir(parents=True, exist_ok=True)
        parsed.json.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    if parsed.page:
        PAGE.write_text(engine_report.insert(PAGE.read_text("utf-8"), table), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
