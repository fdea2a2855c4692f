"""The table of input rows: one fixed-size entry for each row of every channel, so memory is some 60 bytes a row.

It is the book from which the split, the ledger and the counts are written. It knows numbers, nothing of text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

SPLITS = ("train", "validation", "test")
NO_SPLIT = -1


class RowOutcome(IntEnum):
    """How an input row ended."""

    KEPT = 0
    TRUNCATED = 1
    DROPPED = 2


class DropReason(IntEnum):
    """Why a row was dropped."""

    NONE = 0
    NO_ROOM = 1
    EMPTY = 2
    TRAIN_SAMPLE = 3
    VALIDATION_SAMPLE = 4
    BLANK = 5


REASONS = {
    DropReason.NONE: "",
    DropReason.NO_ROOM: "the prompt leaves no room for a completion token",
    DropReason.EMPTY: "the completion is empty",
    DropReason.BLANK: "the text is empty",
    DropReason.TRAIN_SAMPLE: "not in the sample of max_train_samples",
    DropReason.VALIDATION_SAMPLE: "not in the sample of max_val_samples",
}

ROW = np.dtype(
    [
        ("file", "<i4"),  # index into the list of files of all channels
        ("line", "<i8"),
        ("fate", "i1"),
        ("reason", "i1"),
        ("tokens", "<i4"),  # kept tokens
        ("completion", "<i4"),  # kept tokens that carry loss when only completions do
        ("cut", "<i4"),  # tokens cut off, on the right of the row or (encoder-decoder) of prompt and completion
        ("cut_prompt", "<i4"),  # those of them that were the prompt's
        ("stored", "<i8"),  # index into the token store, -1 when dropped
        ("same", "<u8"),  # hash of the field values
        ("near", "<i8"),  # group of near-duplicates
    ]
)


@dataclass(frozen=True)
class FileName:
    """A file's channel and its name in it."""

    channel: str
    name: str


@dataclass(frozen=True)
class RowTable:
    """All input rows, in channel, file and line order."""

    files: Sequence[FileName]
    entries: Array  # (R,) of ROW

    def __len__(self) -> int:
        return len(self.entries)

    def source(self, row: int) -> str:
        """``file:line`` of a row."""
        entry = self.entries[row]
        return f"{self.files[entry['file']].name}:{entry['line']}"

    def name(self, row: int) -> str:
        """``channel/file:line``: unique over all channels."""
        entry = self.entries[row]
        file = self.files[entry["file"]]
        return f"{file.channel}/{file.name}:{entry['line']}"

    def names(self, rows: Array) -> Iterator[str]:
        """`name` of many rows."""
        labels = [f"{file.channel}/{file.name}:" for file in self.files]
        for file, line in zip(self.entries["file"][rows].tolist(), self.entries["line"][rows].tolist(), strict=True):
            yield f"{labels[file]}{line}"

    def of_channel(self, channel: str) -> Array:
        """Indices of a channel's rows."""
        chosen = [place for place, file in enumerate(self.files) if file.channel == channel]
        return np.flatnonzero(np.isin(self.entries["file"], chosen))
