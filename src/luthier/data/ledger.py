"""The ledger: the outcome of each input row, as lines of ledger.jsonl and as counts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from luthier.catalog.hyperparameters import AUTOPILOT_MAX_TRUNCATED
from luthier.data.rows import NO_SPLIT, REASONS, SPLITS, Array, DropReason, RowOutcome, RowTable
from luthier.errors import DataError, Problem

_ROWS_PER_BATCH = 10_000


@dataclass(frozen=True, kw_only=True)
class RowCounts:
    """Rows by outcome (rows = kept + truncated + dropped) and the tokens of those not dropped.

    `completion_tokens` includes the end-of-text tokens; `by_channel` has the counts of each channel.
    """

    rows: int
    kept: int
    truncated: int
    dropped: int
    tokens: int
    completion_tokens: int
    by_channel: dict[str, RowCounts] = field(default_factory=dict)


def count(table: RowTable) -> RowCounts:
    """Count the rows of a table, in total and by channel."""
    channels = list(dict.fromkeys(file.channel for file in table.files))
    by_channel = {channel: _counts(table.entries[table.of_channel(channel)]) for channel in channels}
    return _counts(table.entries, by_channel)


def _counts(entries: Array, by_channel: dict[str, RowCounts] | None = None) -> RowCounts:
    outcomes = np.bincount(entries["fate"], minlength=3).tolist()
    is_kept = entries["fate"] != RowOutcome.DROPPED
    return RowCounts(
        rows=len(entries),
        kept=outcomes[RowOutcome.KEPT],
        truncated=outcomes[RowOutcome.TRUNCATED],
        dropped=outcomes[RowOutcome.DROPPED],
        tokens=int(entries["tokens"][is_kept].sum(dtype=np.int64)),
        completion_tokens=int(entries["completion"][is_kept].sum(dtype=np.int64)),
        by_channel=by_channel or {},
    )


def lines(table: RowTable, splits: Array) -> Iterator[dict[str, Any]]:
    """Yield the ledger's lines in row order."""
    for start in range(0, len(table), _ROWS_PER_BATCH):
        rows = np.arange(start, min(start + _ROWS_PER_BATCH, len(table)))
        masked = [None] * len(rows) if table.masked is None else table.masked[rows].tolist()
        named = zip(table.entries[rows].tolist(), splits[rows].tolist(), table.names(rows), masked, strict=True)
        for entry, split, name, masked_turns in named:
            file, line, outcome, reason, tokens, completion, cut, cut_prompt, *_ = entry
            dropped = outcome == RowOutcome.DROPPED
            yield {
                "row": name,
                "file": table.files[file].name,
                "line": line,
                "side": None if split == NO_SPLIT else SPLITS[split],
                "fate": RowOutcome(outcome).name.lower(),
                "tokens": 0 if dropped else tokens,
                "completion_tokens": 0 if dropped else completion,
                "cut": cut,
                "cut_prompt": cut_prompt,
                "cut_side": "right" if cut else None,
                "reason": _describe_reason(reason, tokens) if dropped else None,
                **({} if masked_turns is None else {"masked_turns": masked_turns}),
            }


def _describe_reason(reason: int, tokens: int) -> str:
    return REASONS[DropReason(reason)] + (f" (the row has {tokens:,} tokens)" if reason == DropReason.NO_ROOM else "")


def write(path: Path, table: RowTable, splits: Array) -> None:
    """Write ledger.jsonl atomically."""
    temporary = path.with_name(f".{path.name}.part")
    with open(temporary, "w", encoding="utf-8") as handle:
        for line in lines(table, splits):
            handle.write(json.dumps(line, ensure_ascii=False) + "\n")
    temporary.replace(path)


def data_loss_warnings(table: RowTable, max_length: int) -> list[str]:
    """Warnings about truncated and dropped rows, each with its first rows."""
    warnings = []
    entries = table.entries
    cut = np.flatnonzero(entries["fate"] == RowOutcome.TRUNCATED)
    if len(cut):
        tokens = int(entries["cut"][cut].sum(dtype=np.int64))
        warnings.append(
            f"{_count_of(len(cut), len(table))} truncated to {max_length:,} tokens: {tokens:,} tokens cut "
            f"on the right, including the end-of-text token (first: {table.name(int(cut[0]))})"
        )
    for reason in DropReason:
        rows = np.flatnonzero((entries["reason"] == reason) & (entries["fate"] == RowOutcome.DROPPED))
        if len(rows):
            names = ", ".join(table.names(rows[:3])) + (" ..." if len(rows) > 3 else "")
            warnings.append(f"{_count_of(len(rows), len(table))} dropped, {REASONS[reason]}: {names}")
    return warnings


def _count_of(count: int, total: int) -> str:
    return f"{count:,} of {total:,} rows {'is' if count == 1 else 'are'}"


def check_truncated(counts: RowCounts, kind: str, limit: float | None) -> None:
    """Raise DataError when more than the fraction `limit` of rows is truncated; default for autopilot data: 0.6."""
    if limit is None and kind == "autopilot":
        limit = AUTOPILOT_MAX_TRUNCATED
    if limit is not None and counts.truncated > limit * counts.rows:
        message = f"{counts.truncated:,} of {counts.rows:,} rows are truncated; the allowed fraction is {limit:g}"
        advice = "raise max_input_length (if the model's context allows), shorten the rows, or raise --max-truncated"
        raise DataError(Problem("", 0, f"{message}; {advice}"))


def check_rows(counts: RowCounts, limit: int | None) -> None:
    """Raise DataError when all channels together have more than `limit` rows."""
    if limit is not None and counts.rows > limit:
        message = f"{counts.rows:,} rows in all channels; the limit for this model is {limit:,}"
        raise DataError(Problem("", 0, f"{message}; remove {counts.rows - limit:,} rows"))
