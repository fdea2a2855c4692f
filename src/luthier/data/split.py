"""Which split each row is on: train, validation or test; stored in split.json so that it can be checked.

    shares        floor(share x rows) of the training channel's rows, drawn by the seed
    duplicates    rows with the same field values are drawn together, as far as the share allows
    supplied      a split that the user supplied keeps exactly its rows

It knows row numbers and groups, nothing of text or tokens.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from luthier.data.rows import NO_SPLIT, ROW, SPLITS, Array, DropReason, RowOutcome, RowTable
from luthier.data.settings import DataSettings
from luthier.errors import DataError, Problem, RunFolderError

FORMAT_VERSION = 1
_OFTEN = 100_000  # names joined at once when written


@dataclass(frozen=True)
class SplitAssignment:
    """The three splits as ascending int64 indices into the token store.

    `row_splits` int8 (R,) holds the split of each input row: an index into SPLITS, or NO_SPLIT.
    """

    train: Array
    validation: Array
    test: Array
    supplied: frozenset[str]
    table: RowTable
    row_splits: Array
    seed: int = 0
    warnings: tuple[str, ...] = field(default=(), compare=False)

    def _rows(self) -> dict[str, Array]:
        return {name: np.flatnonzero(self.row_splits == number) for number, name in enumerate(SPLITS)}

    def save(self, path: Path) -> None:
        """Write split.json: the names of each split's rows, as ``channel/file:line``."""
        temporary = path.with_name(f".{path.name}.part")
        with open(temporary, "w", encoding="utf-8") as handle:
            head = {"format_version": FORMAT_VERSION, "seed": self.seed, "supplied": sorted(self.supplied)}
            handle.write(json.dumps(head)[:-1])
            for name, rows in self._rows().items():
                handle.write(f',\n"{name}": [')
                for start in range(0, len(rows), _OFTEN):
                    names = ",".join(json.dumps(row) for row in self.table.names(rows[start : start + _OFTEN]))
                    handle.write(("," if start else "") + names)
                handle.write("]")
            handle.write("}\n")
        temporary.replace(path)

    def verify(self, path: Path) -> None:
        """Check that a stored split.json is this split; RunFolderError says how they differ."""
        stored = load(path)
        for name, rows in self._rows().items():
            listed = stored.get(name, [])
            if len(listed) != len(rows) or any(a != b for a, b in zip(listed, self.table.names(rows), strict=True)):
                raise RunFolderError(
                    f"{path}: the stored {name} rows are not what data and settings give now; "
                    "restore the data, or start a new run"
                )


def load(path: Path) -> dict[str, Any]:
    """Read a split.json; RunFolderError when it is not one or is newer than this version."""
    try:
        stored = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{path}: not a readable split ({error})") from None
    if not isinstance(stored, dict) or stored.get("format_version", 0) > FORMAT_VERSION:
        raise RunFolderError(f"{path}: written by a newer Luthier; upgrade to read it")
    return stored


def assign_splits(table: RowTable, settings: DataSettings, contiguous: bool) -> tuple[Array, frozenset[str], list[str]]:
    """Put every row that can be trained on its split. Marks sampled-out rows as dropped in the table's entries.

    `contiguous`: rows are consecutive text, so each split is one stretch (train, then validation, then test).
    Returns splits int8 (R,), the supplied splits, and warnings.
    """
    usable = table.entries["fate"] != RowOutcome.DROPPED
    splits = np.full(len(table), NO_SPLIT, np.int8)
    supplied = frozenset(name for name in ("validation", "test") if any(file.channel == name for file in table.files))
    training = table.of_channel("training")
    training = training[usable[training]]
    splits[training] = 0
    for name in supplied:
        rows = table.of_channel(name)
        splits[rows[usable[rows]]] = SPLITS.index(name)
    asked = {name: 0 if name in supplied else int(len(training) * share + 1e-9) for name, share in _shares(settings)}
    if contiguous:
        end = len(training) - sum(asked.values())
        for name, size in asked.items():
            splits[training[end : end + size]] = SPLITS.index(name)
            end += size
    else:
        _draw(table.entries, training, splits, asked, settings)
    warnings = _ignored(settings, supplied)
    _sample(table.entries, splits, settings, contiguous)
    return splits, supplied, warnings + _checks(splits, settings)


def _shares(settings: DataSettings) -> Iterator[tuple[str, float]]:
    yield "validation", settings.validation_split_ratio
    yield "test", settings.test_split_ratio


def _draw(entries: Array, rows: Array, splits: Array, asked: dict[str, int], settings: DataSettings) -> None:
    """Draw whole groups by the seed; a group is cut only when no whole one is left that fits."""
    if not len(rows):
        return
    groups = entries["near"][rows] if settings.group_near_duplicates else entries["same"][rows]
    _, group_of = np.unique(groups, return_inverse=True)
    by_group = np.argsort(group_of, kind="stable")
    sizes = np.bincount(group_of)
    starts = np.cumsum(sizes) - sizes
    order = np.random.default_rng((settings.split_seed, 0)).permutation(len(sizes))
    free = np.ones(len(sizes), np.bool_)
    for name, room in asked.items():
        split = SPLITS.index(name)
        for group in order[free[order]].tolist():
            if room == 0:
                break
            if sizes[group] <= room:
                splits[rows[by_group[starts[group] : starts[group] + sizes[group]]]] = split
                free[group] = False
                room -= int(sizes[group])
        if room:  # only larger groups are left: the share wins over keeping one whole
            left = order[free[order]]
            for group in left[np.argsort(sizes[left], kind="stable")].tolist()[:1]:
                splits[rows[by_group[starts[group] : starts[group] + room]]] = split
                by_group[starts[group] : starts[group] + sizes[group]] = np.roll(
                    by_group[starts[group] : starts[group] + sizes[group]], -room
                )
                sizes[group] -= room


def _sample(entries: Array, splits: Array, settings: DataSettings, contiguous: bool) -> None:
    """Keep max_train_samples and max_val_samples rows; the others are dropped, by name of the setting."""
    limits = {
        DropReason.TRAIN_SAMPLE: settings.max_train_samples,
        DropReason.VALIDATION_SAMPLE: settings.max_val_samples,
    }
    for split, (reason, limit) in enumerate(limits.items()):
        rows = np.flatnonzero(splits == split)
        if limit < 0 or len(rows) <= limit:
            continue
        order = np.arange(len(rows))
        if not contiguous:
            order = np.random.default_rng((settings.split_seed, 1 + split)).permutation(len(rows))
        out = rows[order[limit:]]
        splits[out] = NO_SPLIT
        entries["fate"][out] = RowOutcome.DROPPED
        entries["reason"][out] = reason
        entries["cut"][out] = 0


def _ignored(settings: DataSettings, supplied: frozenset[str]) -> list[str]:
    return [
        f"{name}_split_ratio has no effect: the {name} rows are supplied"
        for name in sorted(supplied)
        if f"{name}_split_ratio" in settings.explicit
    ]


def _checks(splits: Array, settings: DataSettings) -> list[str]:
    counts = np.bincount(splits[splits >= 0], minlength=len(SPLITS))
    if not counts[0]:
        shares = f"validation_split_ratio={settings.validation_split_ratio:g} and test_split_ratio="
        held_out = f"{shares}{settings.test_split_ratio:g} hold out all" if counts.sum() else "every row was dropped"
        raise DataError(Problem("", 0, f"no trainable row is left: {held_out}"))
    if settings.scoring:
        return []
    if not counts[1] and settings.validation_split_ratio > 0:
        return [
            f"the validation split is empty: {counts[0]} training rows at validation_split_ratio="
            f"{settings.validation_split_ratio:g} give none; the last checkpoint is kept unchosen"
        ]
    return [] if counts[1] else ["the validation split is empty: the last checkpoint is kept unchosen"]


def duplicates_across(table: RowTable, splits: Array, column: str) -> list[tuple[int, int]]:
    """(held-out row, training row) pairs that share a group of `column` ("same" or "near"), by held-out row."""
    groups = table.entries[column]
    training = np.flatnonzero(splits == 0)
    held_out = np.flatnonzero(splits > 0)
    known, first = np.unique(groups[training], return_index=True)
    if not len(known) or not len(held_out):
        return []
    place = np.minimum(np.searchsorted(known, groups[held_out]), len(known) - 1)
    match = known[place] == groups[held_out]
    return list(zip(held_out[match].tolist(), training[first[place[match]]].tolist(), strict=True))


def empty_table() -> Array:
    """A table of no rows."""
    return np.empty(0, ROW)
