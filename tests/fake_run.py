"""Builds a run folder with the files that a real run leaves, for the report to read; no model is involved."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from luthier.evaluation.compare import compare
from luthier.jobfolder import JobFolder
from luthier.jobspec import JobSpec

OPENINGS = ["The strap arrived quickly.", "I bought this for my sister.", "Third one I own.", "Used it for two weeks."]
GOOD = ["It works better than I hoped and looks lovely.", "Great sound, fair price, I would buy it again."]
BAD = ["It broke on the first day and nobody answered.", "Cheap plastic, and the battery died within a week."]
LABELS = ("Positive", "Negative")


def write_lines(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8") as handle:
        handle.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def score_rows(seed: int, hit: float, nats: float, rows: int) -> list[dict[str, Any]]:
    """Held-out reviews as a model with hit rate `hit` would answer them."""
    draw, same = random.Random(seed), random.Random(99)
    lines = []
    for row in range(rows):
        label = same.choice(LABELS)
        review = f"{same.choice(OPENINGS)} {same.choice(GOOD if label == 'Positive' else BAD)}"
        answer = label if draw.random() < hit else draw.choice([*LABELS, "The review says that", "good"])
        lines.append(
            {
                "row": f"reviews.jsonl:{row * 7 + 3}",
                "loss_sum": 2 * abs(draw.gauss(nats, nats / 3)),
                "tokens": 2,
                "correct": min(2, int(answer == label) + draw.randint(0, 1)),
                "prompt": f"Classify this review as Positive or Negative.\n\nReview: {review}\n\nSentiment:",
                "reference": label,
                "prediction": answer,
                "truncated_generation": False,
            }
        )
    return lines


def curve_lines(steps: int) -> list[dict[str, Any]]:
    draw = random.Random(1)
    lines: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        trend = 0.12 + 2.3 * math.exp(-step / (steps / 6))
        rate = 2e-4 * min(step / 20, 1) * (1 + math.cos(math.pi * step / steps)) / 2
        lines.append(
            {
                "step": step,
                "epoch": step / (steps / 3),
                "loss": abs(trend + draw.gauss(0, 0.07 + trend * 0.12)),
                "learning_rate": rate,
                "tokens": step * 900,
                "completion_tokens": step * 32,
                "time": 1.7e9 + step,
            }
        )
        if step % (steps // 8) == 0:
            overfit = 0.05 * max(0.0, step / steps - 0.6)
            lines.append(
                {
                    "step": step,
                    "epoch": step / (steps / 3),
                    "eval_loss": trend + 0.03 + overfit,
                    "eval_token_accuracy": 1 - trend / 3,
                    "time": 1.7e9 + step,
                }
            )
    return lines


def ledger_lines(rows: int) -> list[dict[str, Any]]:
    draw = random.Random(2)
    lines = []
    for row in range(1, rows + 1):
        tokens = round(draw.lognormvariate(4.4, 0.45))
        split = "validation" if row % 10 == 3 else "test" if row % 10 == 7 else "train"
        line = {
            "row": f"training/reviews.jsonl:{row}",
            "file": "reviews.jsonl",
            "line": row,
            "side": split,
            "fate": "kept",
            "tokens": tokens,
            "completion_tokens": 2,
            "cut": 0,
            "cut_side": None,
            "reason": None,
        }
        if tokens > 256:
            line |= {
                "fate": "truncated",
                "cut": tokens - 256,
                "cut_side": "right",
                "tokens": 256,
            }
        elif row % 211 == 5:
            line |= {"fate": "dropped", "side": None, "tokens": 0, "reason": "the completion is empty"}
        elif row % 307 == 5:
            line |= {
                "fate": "dropped",
                "side": None,
                "reason": f"the prompt leaves no room for a completion token (the row has {tokens:,} tokens)",
            }
        lines.append(line)
    return lines


RUN: dict[str, Any] = {
    "format_version": 1,
    "luthier_version": "0.1.0",
    "started": "2026-11-21T03:10:00+00:00",
    "command": ["luthier", "tune", "examples/reviews", "--set", "epoch=3", "--set", "test_split_ratio=0.1"],
    "model": {
        "name": "luthier/tiny",
        "folder": "/home/ada/models/tiny",
        "repository": None,
        "revision": "1",
        "weights_sha256": "4f" * 32,
        "architecture": "LlamaForCausalLM",
    },
    "kind": "instruction",
    "template": {
        "prompt": "Classify this review as Positive or Negative.\n\nReview: {review}\n\nSentiment:",
        "completion": "{sentiment}",
    },
    "template_origin": "template.json",
    "settings": {
        "epoch": 3,
        "learning_rate": 0.0002,
        "peft_type": "lora",
        "lora_r": 8,
        "max_input_length": 256,
        "per_device_train_batch_size": 16,
        "test_split_ratio": 0.1,
        "warmup_ratio": 0.1,
        "seed": 10,
        "early_stopping_patience": 3,
        "instruction_tuned": True,
        "chat_dataset": False,
    },
    "given": ["epoch", "test_split_ratio"],
    "device": "cpu",
    "dtype": "float32",
    "threads": 2,
    "versions": {"luthier": "0.1.0", "torch": "2.13.0+cpu", "transformers": "5.23.0", "peft": "0.21.2"},
    "python": "3.11.7",
    "host_cpu": "x86_64",
    "data": {
        "fingerprint": "9c" * 32,
        "files": {"training/reviews.jsonl": "a1" * 32, "training/template.json": "b2" * 32},
        "counts": {},
    },
    "warnings": [
        "3 rows of the test split nearly repeat a training row (group_near_duplicates=true keeps them together)"
    ],
}


def build_run(root: Path, rows: int = 200, ledger_rows: int = 1500, steps: int = 240, split: str = "test") -> JobFolder:
    """A complete, finished run."""
    job = JobFolder(root)
    spec = JobSpec(model="luthier/tiny", kind="instruction", command=RUN["command"], hyperparameters={"epoch": "3"})
    job.create(spec, {})
    (root / "run.json").write_text(json.dumps(RUN))
    write_lines(job.metrics_lines, curve_lines(steps))
    write_lines(job.ledger, ledger_lines(ledger_rows))
    write_lines(job.scores / f"base.{split}.jsonl", score_rows(3, 0.1, 2.4, rows))
    write_lines(job.scores / f"tuned.{split}.jsonl", score_rows(4, 0.9, 0.3, rows))
    compared = compare(job.scores / f"base.{split}.jsonl", job.scores / f"tuned.{split}.jsonl")
    best = min((line for line in curve_lines(steps) if "eval_loss" in line), key=lambda line: line["eval_loss"])
    metrics = {
        "format_version": 1,
        "split": split,
        **compared,
        "validation": compared if split == "test" else None,
        "cost": {
            "train_seconds": 141.2,
            "score_seconds": 38.9,
            "total_seconds": 187.4,
            "train_tokens": 216_000,
            "completion_tokens": 7_680,
            "tokens_per_second": 1529.7,
            "peak_memory_bytes": 912_000_000,
            "trainable_parameters": 295_000,
            "parameters": 5_600_000,
        },
        "best": {"step": best["step"], "eval_loss": best["eval_loss"]},
        "steps": steps,
        "epochs": 3.0,
        "stopped": "completed",
    }
    job.metrics.write_text(json.dumps(metrics))
    job.artifact.write_bytes(b"\0" * 4_300_000)
    return job
