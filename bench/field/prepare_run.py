"""Preparing rows as a contender: from a JSONL file to ids that are ready to train on, once a step, nothing cached.

`python -m bench.field.prepare_run CASE`, a JSON file. Its `style` is luthier (the data room's `prepare`, with its
split, its search for duplicates and its ledger) or trl (SFTTrainer's own preparation of a data set, packing included).
Which libraries are loaded follows it: each side runs in its own interpreter.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.field.line import Line, Stopwatch, peak_rss

Work = Callable[[Path], tuple[int, int]]  # an empty folder for caches -> tokens, and those that carry loss


def _luthier(case: dict[str, Any]) -> Work:
    data = importlib.import_module("luthier.data.prepare")
    tokenize = importlib.import_module("luthier.data.tokenize")
    tokenize.set_threads(case["threads"])
    tokenizer = tokenize.Tokenizer.load(Path(case["model"]))
    settings = data.DataSettings(kind="instruction", demarcation=False)

    def work(cache: Path) -> tuple[int, int]:
        found = data.prepare({"training": Path(case["channel"])}, settings, tokenizer, cache).tokens
        return int(found.lengths.sum()), int(found.trained_counts.sum())

    return work


def _trl(case: dict[str, Any]) -> Work:
    """A trainer over a handful of rows stands ready, so that only its preparation is timed."""
    trl, datasets = importlib.import_module("trl"), importlib.import_module("datasets")
    datasets.disable_progress_bars()
    tokenizer = importlib.import_module("transformers").AutoTokenizer.from_pretrained(case["model"])
    arguments = trl.SFTConfig(
        output_dir=str(Path(case["work"]) / "trl"), packing=True, max_length=1024, report_to="none", use_cpu=True
    )
    few = datasets.Dataset.from_list([{"prompt": "a", "completion": "b"}] * 4)
    trainer = trl.SFTTrainer(model=case["tiny"], args=arguments, train_dataset=few, processing_class=tokenizer)

    def work(cache: Path) -> tuple[int, int]:
        read = datasets.Dataset.from_json(case["pairs"], cache_dir=str(cache))
        found = trainer._prepare_dataset(read, tokenizer, arguments, True, None, "train")
        columns = found.data
        tokens = sum(len(chunk.flatten()) for chunk in columns.column("input_ids").chunks)
        labels = (chunk.flatten().to_numpy(zero_copy_only=False) for chunk in columns.column("labels").chunks)
        return tokens, sum(int((chunk != -100).sum()) for chunk in labels)

    return work


STYLES: dict[str, Callable[[dict[str, Any]], Work]] = {"luthier": _luthier, "trl": _trl}


def main() -> None:
    """Prepare once for each word, until the coordinator is done."""
    line = Line()
    case = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    work = STYLES[case["style"]](case)
    watch = Stopwatch()
    cache = Path(case["work"]) / f"{case['style']}-cache"
    line.say(pid=os.getpid())
    while True:
        line.wait()
        shutil.rmtree(cache, ignore_errors=True)
        cache.mkdir(parents=True)
        watch.start()
        tokens, completion_tokens = work(cache)
        line.say(**watch.read(), tokens=tokens, completion_tokens=completion_tokens, loss=0.0, rss=peak_rss())


if __name__ == "__main__":
    main()
