"""Ledger counts, in bounded memory."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

from fake_run import ledger_lines, write_lines

from luthier.evaluation.ledger_summary import MAX_LISTED_ROWS, MAX_REASONS, MAX_ROW_TOKENS, summarize_ledger


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
    summary = summarize_ledger(path)
    assert summary is not None
    assert summary.by_split == {"train": {"kept": 1, "truncated": 1}, "": {"dropped": 1}, "test": {"kept": 1}}
    assert summary.reasons == {
        ("truncated", "longer than the limit, truncated on the left"): 1,
        ("dropped", "empty"): 1,
    }
    assert [line["row"] for line in summary.listed["dropped"]] == ["a:3"]
    assert (
        summary.rows,
        summary.truncated_tokens,
        summary.invalid_lines,
        summary.training_rows,
        summary.count("kept"),
    ) == (4, 5, 1, 2, 2)
    assert summary.lengths[10] == summary.lengths[20] == summary.lengths[MAX_ROW_TOKENS] == 1
    assert summary.lengths.sum() == 3


def test_reasons_and_names_are_bounded(tmp_path: Path) -> None:
    write_lines(tmp_path / "l", ({"row": str(n), "fate": "dropped", "reason": f"reason {n}"} for n in range(500)))
    summary = summarize_ledger(tmp_path / "l")
    assert summary is not None
    assert len(summary.reasons) == MAX_REASONS + 1
    assert summary.reasons["dropped", "other reasons"] == 500 - MAX_REASONS
    assert len(summary.listed["dropped"]) == MAX_LISTED_ROWS


def test_memory_does_not_grow_with_the_ledger(tmp_path: Path) -> None:
    write_lines(tmp_path / "l", ledger_lines(20_000))
    tracemalloc.start()
    summarize_ledger(tmp_path / "l")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path / "l").stat().st_size > 3e6
    assert peak < 1.5e6


def test_no_ledger(tmp_path: Path) -> None:
    assert summarize_ledger(tmp_path / "none") is None
