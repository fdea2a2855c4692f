"""Counts the outcome of every input row (kept, truncated, dropped) from ledger.jsonl, for the report.

The ledger is streamed; memory use does not grow with it: counts, a histogram, and the first rows of each outcome.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

OUTCOMES = ("kept", "truncated", "dropped")
MAX_LISTED_ROWS = 12
"""Rows of an outcome that are listed individually."""
MAX_REASONS = 25
MAX_ROW_TOKENS = 1 << 16
"""Longer rows share the last bin of the histogram."""

SPLITS = ("train", "validation", "test")
_SPLIT_ALIASES = {"training": "train"}


@dataclass(slots=True, kw_only=True)
class LedgerSummary:
    """Row counts of a ledger.

    by_split: rows per split ("" for rows assigned to none) and outcome; reasons: (outcome, reason) -> rows; listed: the
    first truncated and dropped rows; lengths: (MAX_ROW_TOKENS + 1,) rows per number of tokens, without dropped rows;
    truncated_tokens: total; invalid_lines: lines that could not be parsed.
    """

    by_split: dict[str, Counter[str]] = field(default_factory=dict)
    reasons: Counter[tuple[str, str]] = field(default_factory=Counter)
    listed: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: {"truncated": [], "dropped": []})
    lengths: np.ndarray[Any, Any] = field(default_factory=lambda: np.zeros(MAX_ROW_TOKENS + 1, dtype=np.int64))
    truncated_tokens: int = 0
    rows: int = 0
    invalid_lines: int = 0

    def count(self, outcome: str) -> int:
        return sum(counts[outcome] for counts in self.by_split.values())

    @property
    def training_rows(self) -> int:
        """Rows of the training split that were not dropped."""
        counts = self.by_split.get("train", Counter())
        return counts["kept"] + counts["truncated"]

    def add(self, line: dict[str, Any]) -> None:
        """Count one ledger line."""
        outcome, split = str(line["fate"]), str(line.get("side") or "")
        self.rows += 1
        self.by_split.setdefault(_SPLIT_ALIASES.get(split, split), Counter())[outcome] += 1
        if outcome != "dropped":
            self.lengths[min(max(int(line.get("tokens") or 0), 0), MAX_ROW_TOKENS)] += 1
        self.truncated_tokens += int(line.get("cut") or 0)
        if outcome in self.listed:
            key = (outcome, _reason(line))
            if key not in self.reasons and len(self.reasons) >= MAX_REASONS:
                key = (outcome, "other reasons")
            self.reasons[key] += 1
            if len(self.listed[outcome]) < MAX_LISTED_ROWS:
                self.listed[outcome].append(line)


def _reason(line: dict[str, Any]) -> str:
    """Why a row was truncated or dropped, without the numbers of that row, such as "(the row has 812 tokens)"."""
    if line.get("reason"):
        return re.sub(r" \([^()]*\d[^()]*\)$", "", str(line["reason"]))[:200]
    return f"longer than the limit, truncated on the {line['cut_side']}" if line.get("cut_side") else "no reason given"


def summarize_ledger(path: Path) -> LedgerSummary | None:
    """Read a ledger; None if the file does not exist."""
    if not path.is_file():
        return None
    summary = LedgerSummary()
    with open(path, encoding="utf-8", errors="replace", newline="\n") as handle:
        for text in handle:
            try:
                summary.add(json.loads(text))
            except (ValueError, KeyError, TypeError, AttributeError):
                summary.invalid_lines += 1
    return summary
