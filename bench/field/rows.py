"""The rows of the bench: GSM8K with a template, as a channel for Luthier and as token ids for everyone.

Luthier tokenizes; the peers get the ids that it made, so that all of them train on the very same tokens.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from luthier.data.prepare import Dataset, DataSettings, prepare
from luthier.data.tokenize import Tokenizer

DATA = Path(__file__).resolve().parent.parent / "data"


def read() -> list[dict[str, str]]:
    """The rows as they are stored: question and answer."""
    with open(DATA / "gsm8k.jsonl", encoding="utf-8") as handle:
        return [json.loads(line) for line in handle]


def write_channel(folder: Path, count: int | None = None) -> Path:
    """A training channel; more rows than there are repeat them with a counter, so that no two are the same."""
    rows = read()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shutil.copy(DATA / "template.json", folder)
    with open(folder / "rows.jsonl", "w", encoding="utf-8") as handle:
        for number in range(count or len(rows)):
            row = dict(rows[number % len(rows)])
            if number >= len(rows):
                row["question"] = f"{number}. {row['question']}"
            handle.write(json.dumps(row) + "\n")
    return folder


def write_pairs(channel: Path, path: Path) -> Path:
    """The channel's rows as the peers read them: prompt and completion, rendered by the same template."""
    template = json.loads((channel / "template.json").read_text("utf-8"))
    with open(channel / "rows.jsonl", encoding="utf-8") as rows, open(path, "w", encoding="utf-8") as out:
        for line in rows:
            row = json.loads(line)
            pair = {side: template[side].format(**row) for side in ("prompt", "completion")}
            out.write(json.dumps(pair) + "\n")
    return path


def tokenize(channel: Path, model: Path, cache: Path) -> Dataset:
    """Luthier's own preparation; every row trains."""
    settings = DataSettings(kind="instruction", validation_split_ratio=0.0, demarcation=False)
    return prepare({"training": channel}, settings, Tokenizer.load(model), cache)


def write_ids(prepared: Dataset, path: Path, pairs: bool) -> Path:
    """One JSON line a row: input_ids and labels, -100 where none is; of `pairs`, source and target."""
    with open(path, "w", encoding="utf-8") as out:
        for number in prepared.split.train.tolist():
            ids, trained = prepared.tokens.row(number)
            if pairs:
                cut = int(trained.argmax())
                row = {"input_ids": ids[:cut].tolist(), "labels": ids[cut:].tolist()}
            else:
                row = {"input_ids": ids.tolist(), "labels": [int(token) if label else -100
                       for token, label in zip(ids, trained, strict=True)]}  # fmt: skip
            out.write(json.dumps(row) + "\n")
    return path
