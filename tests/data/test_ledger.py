from __future__ import annotations

import re

import numpy as np
import pytest

from luthier.data.ledger import RowCounts, check_rows, check_truncated, count, data_loss_warnings, lines
from luthier.data.rows import ROW, DropReason, FileName, RowOutcome, RowTable
from luthier.errors import DataError


def table() -> RowTable:
    entries = np.zeros(4, ROW)
    entries["line"] = [1, 2, 1, 2]
    entries["file"] = [0, 0, 1, 1]
    entries["tokens"] = [10, 20, 30, 40]
    entries["completion"] = [1, 2, 3, 4]
    entries["fate"] = [RowOutcome.KEPT, RowOutcome.TRUNCATED, RowOutcome.DROPPED, RowOutcome.DROPPED]
    entries["reason"] = [DropReason.NONE, DropReason.NONE, DropReason.NO_ROOM, DropReason.VALIDATION_SAMPLE]
    entries["cut"] = [0, 5, 0, 0]
    return RowTable([FileName("training", "a.jsonl"), FileName("validation", "a.jsonl")], entries)


def counts_of(
    rows: int, kept: int, truncated: int, dropped: int, tokens: int, completion_tokens: int,
    by_channel: dict[str, RowCounts] | None = None,
) -> RowCounts:  # fmt: skip
    return RowCounts(
        rows=rows, kept=kept, truncated=truncated, dropped=dropped, tokens=tokens,
        completion_tokens=completion_tokens, by_channel=by_channel or {},
    )  # fmt: skip


def test_counts() -> None:
    counts = count(table())
    training = counts_of(2, 1, 1, 0, 30, 3)
    assert counts == counts_of(4, 1, 1, 2, 30, 3, {"training": training, "validation": counts_of(2, 0, 0, 2, 0, 0)})


def test_lines_name_each_row_and_its_reason() -> None:
    written = list(lines(table(), np.array([0, 0, -1, -1], np.int8)))
    assert [line["row"] for line in written] == [
        "training/a.jsonl:1", "training/a.jsonl:2", "validation/a.jsonl:1", "validation/a.jsonl:2",
    ]  # fmt: skip
    assert [line["reason"] for line in written] == [
        None, None, "the prompt leaves no room for a completion token (the row has 30 tokens)",
        "not in the sample of max_val_samples",
    ]  # fmt: skip
    assert [line["tokens"] for line in written] == [10, 20, 0, 0]


def test_losses_are_said_with_the_first_rows() -> None:
    said = data_loss_warnings(table(), 20)
    assert said[0].startswith("1 of 4 rows is truncated to 20 tokens: 5 tokens cut on the right")
    assert "1 of 4 rows is dropped, the prompt leaves no room for a completion token: validation/a.jsonl:1" in said


@pytest.mark.parametrize(
    ("kind", "limit", "truncated", "refused"),
    [
        ("autopilot", None, 60, False),
        ("autopilot", None, 61, True),
        ("autopilot", 0.9, 61, False),
        ("instruction", None, 100, False),
        ("instruction", 0.5, 51, True),
        ("instruction", 0.0, 1, True),
    ],
)
def test_too_many_truncated_rows_are_refused(kind: str, limit: float | None, truncated: int, refused: bool) -> None:
    counts = counts_of(100, 100 - truncated, truncated, 0, 1, 1)
    if refused:
        with pytest.raises(DataError, match=re.escape(f"{truncated} of 100 rows are truncated")):
            check_truncated(counts, kind, limit)
    else:
        check_truncated(counts, kind, limit)


@pytest.mark.parametrize(("rows", "limit"), [(1000, 1000), (5, None), (1001, 1000)])
def test_more_rows_than_a_model_takes_are_refused(rows: int, limit: int | None) -> None:
    counts = counts_of(rows, rows, 0, 0, 1, 1)
    if limit is None or rows <= limit:
        check_rows(counts, limit)
        return
    with pytest.raises(DataError, match=r"1,001 rows in all channels; the limit .* is 1,000; remove 1 row"):
        check_rows(counts, limit)
