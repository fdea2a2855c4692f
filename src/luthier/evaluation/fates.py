"""What became of every input row, counted from ledger.jsonl, for the report.

The ledger is streamed; what is kept does not grow with it: counts, a histogram, and the first rows of each fate by
name. Does not know how rows are cut or dropped, nor how a page looks.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

FATES = ("kept", "truncated", "dropped")
NAMED_ROWS = 12
"""Rows of a fate that are named one by one."""
MOST_REASONS = 25
LONGEST_ROW = 1 << 16
"""Longer rows share the last bin of the histogram."""

SPLITS = ("train", "validation", "test")
_SPLIT_NAMES = {"training": "train"}


@dataclass(slots=True)
class Fates:
    """by_split: rows per split ("" where a row reached none) and fate; reasons: (fate, reason) -> rows; named: the
    first rows of truncated and dropped; lengths: (LONGEST_ROW + 1,) rows per number of tokens, dropped rows
    aside; cut: tokens cut away in all; unreadable: lines that are no ledger line."""

    by_split: dict[str, Counter[str]] = field(default_factory=dict)
    reasons: Counter[tuple[str, str]] = field(default_factory=Counter)
    named: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: {"truncated": [], "dropped": []})
    lengths: np.ndarray[Any, Any] = field(default_factory=lambda: np.zeros(LONGEST_ROW + 1, dtype=np.int64))
    cut: int = 0
    rows: int = 0
    unreadable: int = 0

    def total(self, fate: str) -> int:
        return sum(counts[fate] for counts in self.by_split.values())

    @property
    def trained(self) -> int:
        """Rows of the training split that were not dropped."""
        counts = self.by_split.get("train", Counter())
        return counts["kept"] + counts["truncated"]

    def add(self, line: dict[str, Any]) -> None:
        """Count one ledger line."""
        fate, split = str(line["fate"]), str(line.get("side") or "")
        self.rows += 1
        self.by_split.setdefault(_SPLIT_NAMES.get(split, split), Counter())[fate] += 1
        if fate != "dropped":
            self.lengths[min(max(int(line.get("tokens") or 0), 0), LONGEST_ROW)] += 1
        self.cut += int(line.get("cut") or 0)
        if fate in self.named:
            key = (fate, _reason(line))
            if key not in self.reasons and len(self.reasons) >= MOST_REASONS:
                key = (fate, "other reasons")
            self.reasons[key] += 1
            if len(self.named[fate]) < NAMED_ROWS:
                self.named[fate].append(line)


def _reason(line: dict[str, Any]) -> str:
    """Why a row was cut or dropped, without what is said of that row alone: "(the row has 812 tokens)"."""
    if line.get("reason"):
        return re.sub(r" \([^()]*\d[^()]*\)$", "", str(line["reason"]))[:200]
    return f"longer than the limit, cut on the {line['cut_side']}" if line.get("cut_side") else "no reason given"


def read_fates(path: Path) -> Fates | None:
    """Read a ledger; None where there is no file."""
    if not path.is_file():
        return None
    fates = Fates()
    with open(path, encoding="utf-8", errors="replace", newline="\n") as handle:
        for text in handle:
            try:
                fates.add(json.loads(text))
            except (ValueError, KeyError, TypeError, AttributeError):
                fates.unreadable += 1
    return fates
