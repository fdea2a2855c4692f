"""Assigns each row to a split (train, validation or test) and stores the assignment in split.json.

    ratios        floor(ratio x rows) of the training channel's rows, drawn by the seed
    duplicates    rows with the same field values are drawn together, as far as the ratio allows
    supplied      a split that the user supplied keeps exactly its rows

It works on row numbers and groups, without text or tokens.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from luthier.data.rows import NO_SPLIT, SPLITS, Array, DropReason, RowOutcome, RowTable
from luthier.data.settings import DataSettings
from luthier.errors import DataError, Problem, RunFolderError

FORMAT_VERSION = 1
_NAMES_PER_WRITE = 100_000


@dataclass(frozen=True, kw_only=True)
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
            header = {"format_version": FORMAT_VERSION, "seed": self.seed, "supplied": sorted(self.supplied)}
            handle.write(json.dumps(header)[:-1])
            for name, rows in self._rows().items():
                handle.write(f',\n"{name}": [')
                for start in range(0, len(rows), _NAMES_PER_WRITE):
                    names = self.table.names(rows[start : start + _NAMES_PER_WRITE])
                    handle.write(("," if start else "") + ",".join(map(json.dumps, names)))
                handle.write("]")
            handle.write("}\n")
        temporary.replace(path)

    def verify(self, path: Path) -> None:
        """Raise RunFolderError when a stored split.json differs from this assignment."""
        stored = load(path)
        for name, rows in self._rows().items():
            listed = stored.get(name, [])
            if len(listed) != len(rows) or any(a != b for a, b in zip(listed, self.table.names(rows), strict=True)):
                raise RunFolderError(
                    f"{path}: the stored {name} rows differ from those of the current data and settings; "
                    "restore the data, or start a new run"
                )


def load(path: Path) -> dict[str, Any]:
    """Read a split.json; RunFolderError when it is not readable, or from a newer version of Luthier."""
    try:
        stored = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{path}: not a readable split ({error})") from None
    if not isinstance(stored, dict) or stored.get("format_version", 0) > FORMAT_VERSION:
        raise RunFolderError(f"{path}: written by a newer Luthier; upgrade to read it")
    return stored


def assign_splits(table: RowTable, settings: DataSettings, contiguous: bool) -> tuple[Array, frozenset[str], list[str]]:
    """Assign every row that was not dropped to a split; rows outside of the samples become dropped in `table`.

    `contiguous`: rows are consecutive text, so each split is one range of rows (train, then validation, then test).
    Returns int8 (R,) indices into SPLITS, the supplied splits, and warnings.
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
    sizes = {name: 0 if name in supplied else int(len(training) * ratio + 1e-9) for name, ratio in _ratios(settings)}
    if contiguous:
        end = len(training) - sum(sizes.values())
        for name, size in sizes.items():
            splits[training[end : end + size]] = SPLITS.index(name)
            end += size
    else:
        _draw_groups(table.entries, training, splits, sizes, settings)
    warnings = _ignored_ratio_warnings(settings, supplied)
    _drop_outside_samples(table.entries, splits, settings, contiguous)
    return splits, supplied, warnings + _check_sizes(splits, settings)


def _ratios(settings: DataSettings) -> Iterator[tuple[str, float]]:
    yield "validation", settings.validation_split_ratio
    yield "test", settings.test_split_ratio


def _draw_groups(
    entries: Array, rows: Array, splits: Array, split_sizes: dict[str, int], settings: DataSettings
) -> None:
    """Draw whole groups by the seed; a group is cut only when no whole group fits the rest of the split."""
    if not len(rows):
        return
    groups = entries["near"][rows] if settings.group_near_duplicates else entries["same"][rows]
    _, group_of = np.unique(groups, return_inverse=True)
    by_group = np.argsort(group_of, kind="stable")
    sizes = np.bincount(group_of)
    starts = np.cumsum(sizes) - sizes
    order = np.random.default_rng((settings.split_seed, 0)).permutation(len(sizes))
    free = np.ones(len(sizes), np.bool_)
    for name, remaining in split_sizes.items():
        split = SPLITS.index(name)
        for group in order[free[order]].tolist():
            if remaining == 0:
                break
            if sizes[group] <= remaining:
                splits[rows[by_group[starts[group] : starts[group] + sizes[group]]]] = split
                free[group] = False
                remaining -= int(sizes[group])
        if remaining:  # only larger groups are left: the ratio takes precedence over whole groups
            larger = order[free[order]]
            for group in larger[np.argsort(sizes[larger], kind="stable")].tolist()[:1]:
                splits[rows[by_group[starts[group] : starts[group] + remaining]]] = split
                by_group[starts[group] : starts[group] + sizes[group]] = np.roll(
                    by_group[starts[group] : starts[group] + sizes[group]], -remaining
                )
                sizes[group] -= remaining


def _drop_outside_samples(entries: Array, splits: Array, settings: DataSettings, contiguous: bool) -> None:
    """Keep as many rows of each split as its setting says; drop the others, with the setting as the reason."""
    reasons = (DropReason.TRAIN_SAMPLE, DropReason.VALIDATION_SAMPLE, DropReason.TEST_SAMPLE)
    for split, (reason, limit) in enumerate(zip(reasons, settings.max_samples, strict=True)):
        rows = np.flatnonzero(splits == split)
        if limit < 0 or len(rows) <= limit:
            continue
        order = np.arange(len(rows))
        if not contiguous:
            order = np.random.default_rng((settings.split_seed, 1 + split)).permutation(len(rows))
        outside = rows[order[limit:]]
        splits[outside] = NO_SPLIT
        entries["fate"][outside] = RowOutcome.DROPPED
        entries["reason"][outside] = reason
        entries["cut"][outside] = 0


def _ignored_ratio_warnings(settings: DataSettings, supplied: frozenset[str]) -> list[str]:
    return [
        f"{name}_split_ratio has no effect: the {name} rows are supplied"
        for name in sorted(supplied)
        if f"{name}_split_ratio" in settings.explicit
    ]


def _check_sizes(splits: Array, settings: DataSettings) -> list[str]:
    counts = np.bincount(splits[splits >= 0], minlength=len(SPLITS))
    if not counts[0]:
        ratios = f"validation_split_ratio={settings.validation_split_ratio:g} and test_split_ratio="
        reason = f"{ratios}{settings.test_split_ratio:g} hold out all" if counts.sum() else "every row was dropped"
        raise DataError(Problem("", 0, f"no training rows left: {reason}"))
    if settings.scoring:
        return []
    if not counts[1] and settings.validation_split_ratio > 0:
        return [
            f"no validation rows ({counts[0]} training rows at validation_split_ratio="
            f"{settings.validation_split_ratio:g}): keeping the last checkpoint instead of the best"
        ]
    return [] if counts[1] else ["no validation rows: keeping the last checkpoint instead of the best"]


def duplicates_across(table: RowTable, splits: Array, column: str) -> list[tuple[int, int]]:
    """(held-out row, training row) pairs in the same group of `column` ("same" or "near"), by held-out row."""
    groups = table.entries[column]
    training = np.flatnonzero(splits == 0)
    held_out = np.flatnonzero(splits > 0)
    known, first = np.unique(groups[training], return_index=True)
    if not len(known) or not len(held_out):
        return []
    position = np.minimum(np.searchsorted(known, groups[held_out]), len(known) - 1)
    match = known[position] == groups[held_out]
    return list(zip(held_out[match].tolist(), training[first[position[match]]].tolist(), strict=True))
