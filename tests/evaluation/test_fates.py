"""Counting the ledger, in bounded memory."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

from fake_run import ledger_lines, write_lines

from luthier.evaluation.fates import LONGEST_ROW, MOST_REASONS, NAMED_ROWS, read_fates


def test_counts_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    lines: list[dict[str, Any]] = [
        {"row": "a:1", "side": "train", "fate": "kept", "tokens": 10, "cut": 0},
        {"row": "a:2", "side": "training", "fate": "truncated", "tokens": 20, "cut": 5, "cut_side": "left"},
        {"row": "a:3", "side": None, "fate": "dropped", "tokens": 0, "reason": "empty (the row has 1,234 tokens)"},
        {"row": "a:4", "side": "test", "fate": "kept", "tokens": 10**9},
    ]
    write_lines(path, lines)
    path.write_text(path.read_text() + '{"torn')
    fates = read_fates(path)
    assert fates is not None
    assert fates.by_split == {"train": {"kept": 1, "truncated": 1}, "": {"dropped": 1}, "test": {"kept": 1}}
    assert fates.reasons == {("truncated", "longer than the limit, cut on the left"): 1, ("dropped", "empty"): 1}
    assert [line["row"] for line in fates.named["dropped"]] == ["a:3"]
    assert (fates.rows, fates.cut, fates.unreadable, fates.trained, fates.total("kept")) == (4, 5, 1, 2, 2)
    assert fates.lengths[10] == fates.lengths[20] == fates.lengths[LONGEST_ROW] == 1
    assert fates.lengths.sum() == 3


def test_reasons_and_names_are_bounded(tmp_path: Path) -> None:
    write_lines(tmp_path / "l", ({"row": str(n), "fate": "dropped", "reason": f"reason {n}"} for n in range(500)))
    fates = read_fates(tmp_path / "l")
    assert fates is not None
    assert len(fates.reasons) == MOST_REASONS + 1
    assert fates.reasons["dropped", "other reasons"] == 500 - MOST_REASONS
    assert len(fates.named["dropped"]) == NAMED_ROWS


def test_memory_does_not_grow_with_the_ledger(tmp_path: Path) -> None:
    write_lines(tmp_path / "l", ledger_lines(20_000))
    tracemalloc.start()
    read_fates(tmp_path / "l")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path / "l").stat().st_size > 3e6
    assert peak < 1.5e6


def test_no_ledger(tmp_path: Path) -> None:
    assert read_fates(tmp_path / "none") is None
