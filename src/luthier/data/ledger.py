"""The ledger: one line for each input row, saying how it ended. Written to ledger.jsonl, counted for the report."""

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

_OFTEN = 10_000  # rows turned into text at once


@dataclass(frozen=True)
class RowCounts:
    """Rows by fate (rows = kept + truncated + dropped) and the tokens of those that stay.

    `completion_tokens`: tokens of completions, the end of text included; `by_channel`: the same for each channel.
    """

    rows: int
    kept: int
    truncated: int
    dropped: int
    tokens: int
    completion_tokens: int
    by_channel: dict[str, RowCounts] = field(default_factory=dict)

    @property
    def truncated_share(self) -> float:
        return self.truncated / self.rows if self.rows else 0.0


def count(table: RowTable) -> RowCounts:
    """Counts of a whole table, with each channel's own."""
    channels = list(dict.fromkeys(file.channel for file in table.files))
    by_channel = {channel: _counts(table.entries[table.of_channel(channel)]) for channel in channels}
    return _counts(table.entries, by_channel)


def _counts(entries: Array, by_channel: dict[str, RowCounts] | None = None) -> RowCounts:
    fates = np.bincount(entries["fate"], minlength=3).tolist()
    stays = entries["fate"] != RowOutcome.DROPPED
    return RowCounts(
        rows=len(entries),
        kept=fates[RowOutcome.KEPT],
        truncated=fates[RowOutcome.TRUNCATED],
        dropped=fates[RowOutcome.DROPPED],
        tokens=int(entries["tokens"][stays].sum(dtype=np.int64)),
        completion_tokens=int(entries["completion"][stays].sum(dtype=np.int64)),
        by_channel=by_channel or {},
    )


def lines(table: RowTable, splits: Array) -> Iterator[dict[str, Any]]:
    """The ledger's lines, in row order."""
    for start in range(0, len(table), _OFTEN):
        rows = np.arange(start, min(start + _OFTEN, len(table)))
        named = zip(table.entries[rows].tolist(), splits[rows].tolist(), table.names(rows), strict=True)
        for entry, split, name in named:
            file, line, fate, reason, tokens, completion, cut, cut_prompt, *_ = entry
            dropped = fate == RowOutcome.DROPPED
            yield {
                "row": name,
                "file": table.files[file].name,
                "line": line,
                "side": None if split == NO_SPLIT else SPLITS[split],
                "fate": RowOutcome(fate).name.lower(),
                "tokens": 0 if dropped else tokens,
                "completion_tokens": 0 if dropped else completion,
                "cut": cut,
                "cut_prompt": cut_prompt,
                "cut_side": "right" if cut else None,
                "reason": _reason(reason, tokens) if dropped else None,
            }


def _reason(reason: int, tokens: int) -> str:
    return REASONS[DropReason(reason)] + (f" (the row has {tokens:,} tokens)" if reason == DropReason.NO_ROOM else "")


def write(path: Path, table: RowTable, splits: Array) -> None:
    """Write ledger.jsonl, whole or not at all."""
    temporary = path.with_name(f".{path.name}.part")
    with open(temporary, "w", encoding="utf-8") as handle:
        for line in lines(table, splits):
            handle.write(json.dumps(line, ensure_ascii=False) + "\n")
    temporary.replace(path)


def data_loss_warnings(table: RowTable, window: int) -> list[str]:
    """Warnings that name what was cut and what was dropped, each with its first row."""
    said = []
    entries = table.entries
    cut = np.flatnonzero(entries["fate"] == RowOutcome.TRUNCATED)
    if len(cut):
        tokens = int(entries["cut"][cut].sum(dtype=np.int64))
        said.append(
            f"{_some(len(cut), len(table))} truncated to {window:,} tokens: {tokens:,} tokens cut "
            f"on the right, the end-of-text token with them (first: {table.name(int(cut[0]))})"
        )
    for reason in DropReason:
        rows = np.flatnonzero((entries["reason"] == reason) & (entries["fate"] == RowOutcome.DROPPED))
        if len(rows):
            named = ", ".join(table.names(rows[:3])) + (" ..." if len(rows) > 3 else "")
            said.append(f"{_some(len(rows), len(table))} dropped, {REASONS[reason]}: {named}")
    return said


def _some(count: int, of: int) -> str:
    return f"{count:,} of {of:,} rows {'is' if count == 1 else 'are'}"


def check_truncated(counts: RowCounts, kind: str, limit: float | None) -> None:
    """DataError when more than `limit` of the rows are truncated; unset, Autopilot's documented 60 % holds for it."""
    if limit is None and kind == "autopilot":
        limit = AUTOPILOT_MAX_TRUNCATED
    if limit is not None and counts.truncated > limit * counts.rows:
        found = f"{counts.truncated:,} of {counts.rows:,} rows are truncated, more than the share of {limit:g} allowed"
        advice = "raise max_input_length (if the model's context allows), shorten the rows, or raise --max-truncated"
        raise DataError(Problem("", 0, f"{found}; {advice}"))


def check_rows(counts: RowCounts, limit: int | None) -> None:
    """DataError when the channels together hold more than `limit` rows."""
    if limit is not None and counts.rows > limit:
        found = f"{counts.rows:,} rows in all channels together, more than the {limit:,} that are taken for this model"
        raise DataError(Problem("", 0, f"{found}; leave {counts.rows - limit:,} of them out"))
