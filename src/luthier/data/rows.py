"""The table of input rows: one fixed-size entry (about 60 bytes) for each row of every channel.

Split, ledger and counts are computed from it. It holds numbers, no text.
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
    """What became of an input row; its ledger key is ``fate``."""

    KEPT = 0
    TRUNCATED = 1
    DROPPED = 2


class DropReason(IntEnum):
    """Why an input row was dropped."""

    NONE = 0
    NO_ROOM = 1
    EMPTY = 2
    TRAIN_SAMPLE = 3
    VALIDATION_SAMPLE = 4
    BLANK = 5
    MASKED = 6
    EMPTY_TURN = 7
    TEST_SAMPLE = 8


REASONS = {
    DropReason.NONE: "",
    DropReason.NO_ROOM: "the prompt leaves no room for a completion token",
    DropReason.EMPTY: "the completion is empty",
    DropReason.BLANK: "the text is empty",
    DropReason.MASKED: "all turns that would carry loss are masked",
    DropReason.EMPTY_TURN: "the assistant's turns that would carry loss have neither text nor a tool call",
    DropReason.TRAIN_SAMPLE: "not in the sample of max_train_samples",
    DropReason.VALIDATION_SAMPLE: "not in the sample of max_val_samples",
    DropReason.TEST_SAMPLE: "not in the sample of max_test_samples",
}

ROW = np.dtype(
    [
        ("file", "<i4"),  # index into the list of files of all channels
        ("line", "<i8"),
        ("fate", "i1"),
        ("reason", "i1"),
        ("tokens", "<i4"),  # kept tokens
        ("completion", "<i4"),  # kept tokens that carry loss when only completions do
        ("cut", "<i4"),  # tokens cut on the right of the row or (encoder-decoder) of prompt and completion
        ("cut_prompt", "<i4"),  # those of them in the prompt
        ("stored", "<i8"),  # index into the token store, -1 when dropped
        ("same", "<u8"),  # hash of the field values
        ("near", "<i8"),  # group of near-duplicates
    ]
)


@dataclass(frozen=True)
class FileName:
    """The channel of a file and its name there."""

    channel: str
    name: str


@dataclass(frozen=True)
class RowTable:
    """All input rows, in channel, file and line order."""

    files: Sequence[FileName]
    entries: Array  # (R,) of ROW
    masked: Array | None = None  # (R,) turns of a conversation that its row excludes from the loss

    def __len__(self) -> int:
        return len(self.entries)

    def source(self, row: int) -> str:
        """``file:line`` of a row."""
        entry = self.entries[row]
        return f"{self.files[entry['file']].name}:{entry['line']}"

    def name(self, row: int) -> str:
        """``channel/file:line`` of a row: unique over all channels."""
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
        numbers = [number for number, file in enumerate(self.files) if file.channel == channel]
        return np.flatnonzero(np.isin(self.entries["file"], numbers))
