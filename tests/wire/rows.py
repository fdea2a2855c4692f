"""The rows that the clients upload: few and short, so that a job's time is mostly its engine's start."""

from __future__ import annotations

import csv
import json
from pathlib import Path

WORDS = ("the", "a", "cat", "dog", "sat", "on", "mat", "red", "blue", "green", "one", "two", "three", "good", "bad")
TEMPLATE = {"prompt": "question: {question}\n", "completion": "{answer}"}


def instruction_folder(folder: Path, count: int = 12) -> Path:
    """A training folder with a template.json of its own."""
    folder.mkdir(parents=True)
    lines = [json.dumps({"question": _words(number, 4), "answer": _words(number + 1, 3)}) for number in range(count)]
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    (folder / "template.json").write_text(json.dumps(TEMPLATE), "utf-8")
    return folder


def autopilot_file(path: Path, count: int = 16) -> Path:
    """Autopilot's two columns as CSV."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["input", "output"])
        writer.writerows([_words(number, 4), _words(number + 1, 3)] for number in range(count))
    return path


def domain_file(path: Path, count: int = 300) -> Path:
    """A plain text."""
    path.write_text(" ".join(WORDS[(number * 7) % len(WORDS)] for number in range(count)) + "\n", "utf-8")
    return path


def _words(start: int, count: int) -> str:
    return " ".join(WORDS[(start * 3 + step * 5) % len(WORDS)] for step in range(count))
