from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.data.rows import REASONS, ROW, FileName, RowOutcome, RowTable
from luthier.data.settings import DataSettings
from luthier.data.split import SplitAssignment, assign_splits, duplicates_across, load
from luthier.errors import DataError, RunFolderError, SettingError


def table(groups: list[int], supplied: int = 0, near: list[int] | None = None) -> RowTable:
    """Training rows with these duplicate groups, then `supplied` validation rows."""
    entries = np.zeros(len(groups) + supplied, ROW)
    entries["line"] = range(1, len(entries) + 1)
    entries["file"][len(groups) :] = 1
    entries["same"] = [*groups, *range(10_000, 10_000 + supplied)]
    entries["near"] = [*(near or range(len(groups))), *range(len(groups), len(entries))]
    entries["stored"] = range(len(entries))
    files = [FileName("training", "a.jsonl")] + [FileName("validation", "v.jsonl")] * (supplied > 0)
    return RowTable(files, entries)


def splits(rows: RowTable, contiguous: bool = False, **settings: Any) -> list[int]:
    return [int(split) for split in assign_splits(rows, DataSettings(**settings), contiguous)[0]]


@pytest.mark.parametrize(("rows", "held_out"), [(1, 0), (4, 0), (5, 1), (10, 2), (99, 19), (100, 20)])
def test_the_share_is_rounded_down(rows: int, held_out: int) -> None:
    assert splits(table(list(range(rows)))).count(1) == held_out


def test_one_to_four_rows_warn() -> None:
    _, _, warnings = assign_splits(table([0, 1, 2]), DataSettings(), False)
    assert len(warnings) == 1
    assert "no validation rows" in warnings[0]


def test_the_seed_decides() -> None:
    rows = table(list(range(100)))
    assert splits(rows, split_seed=1) == splits(rows, split_seed=1)
    assert splits(rows, split_seed=1) != splits(rows, split_seed=2)


@given(
    st.lists(st.integers(0, 12), min_size=1, max_size=80),
    st.floats(0, 0.6),
    st.floats(0, 0.39),
    st.integers(0, 5),
    st.booleans(),
)
def test_shares_hold_and_groups_stay_together(
    groups: list[int], validation: float, test: float, seed: int, grouped: bool
) -> None:
    rows = table(list(range(len(groups))), near=groups) if grouped else table(groups)
    settings: dict[str, Any] = {"validation_split_ratio": validation, "test_split_ratio": test, "split_seed": seed}
    found = splits(rows, group_near_duplicates=grouped, **settings)
    count = len(groups)
    assert found.count(1) == int(count * validation + 1e-9)
    assert found.count(2) == int(count * test + 1e-9)
    assert -1 not in found
    sides_of = {group: {split for g, split in zip(groups, found, strict=True) if g == group} for group in groups}
    cut = [group for group, sides_ in sides_of.items() if len(sides_) > 1]
    assert len(cut) <= 2  # at most one group is cut for each split that is filled


def test_duplicates_stay_on_one_split_when_there_is_room() -> None:
    groups = [number // 2 for number in range(200)]
    found = splits(table(groups))
    assert all(found[place] == found[place + 1] for place in range(0, 200, 2))


def test_all_rows_alike_still_give_the_share() -> None:
    assert splits(table([7] * 10)).count(1) == 2


def test_a_supplied_split_keeps_exactly_its_rows() -> None:
    rows = table([0] * 10, supplied=5)
    settings = DataSettings(validation_split_ratio=0.5, explicit=frozenset({"validation_split_ratio"}))
    found, supplied, warnings = assign_splits(rows, settings, False)
    assert found.tolist() == [0] * 10 + [1] * 5
    assert supplied == {"validation"}
    assert warnings == ["validation_split_ratio has no effect: the validation rows are supplied"]


def test_a_test_share_beside_a_supplied_validation() -> None:
    found = splits(table(list(range(10)), supplied=5), test_split_ratio=0.3)
    assert (found.count(0), found.count(1), found.count(2)) == (7, 5, 3)


def test_contiguous_sides() -> None:
    found = splits(table(list(range(10))), contiguous=True, test_split_ratio=0.1)
    assert found == [0] * 7 + [1] * 2 + [2]


def test_samples_are_drawn_and_the_rest_is_dropped_by_name() -> None:
    rows = table(list(range(100)))
    found = splits(rows, max_samples=(10, 3, -1))
    assert (found.count(0), found.count(1), found.count(-1)) == (10, 3, 87)
    assert (rows.entries["fate"] == RowOutcome.DROPPED).sum() == 87
    assert found.index(0) > 0 or found[:10] != [0] * 10
    again = splits(table(list(range(100))), max_samples=(10, 3, -1))
    assert again == found


def test_test_rows_are_sampled_alike() -> None:
    rows = table(list(range(100)))
    found = splits(rows, test_split_ratio=0.3, max_samples=(-1, -1, 4))
    assert (found.count(0), found.count(1), found.count(2), found.count(-1)) == (50, 20, 4, 26)
    assert {REASONS[reason] for reason in rows.entries["reason"][np.array(found) == -1].tolist()} == {
        "not in the sample of max_test_samples"
    }
    full = splits(table(list(range(100))), test_split_ratio=0.3)
    assert {place for place, split in enumerate(found) if split == 2} < {
        p for p, split in enumerate(full) if split == 2
    }


def test_dropped_rows_have_no_side() -> None:
    rows = table(list(range(10)))
    rows.entries["fate"][:5] = RowOutcome.DROPPED
    found = splits(rows)
    assert found[:5] == [-1] * 5
    assert found.count(1) == 1


@pytest.mark.parametrize("shares", [(1.0, 0.0), (0.0, 1.0), (0.5, 0.5)])
def test_holding_out_everything_is_refused(shares: tuple[float, float]) -> None:
    with pytest.raises(DataError, match=r"no training rows left: validation_split_ratio=.* hold out all"):
        splits(table([0, 1]), validation_split_ratio=shares[0], test_split_ratio=shares[1])


def test_nothing_kept_is_refused() -> None:
    rows = table([0, 1])
    rows.entries["fate"] = RowOutcome.DROPPED
    with pytest.raises(DataError, match="no training rows left: every row was dropped"):
        splits(rows)


def test_shares_above_one_are_refused() -> None:
    with pytest.raises(SettingError):
        DataSettings(validation_split_ratio=0.7, test_split_ratio=0.4)


def made(rows: RowTable) -> SplitAssignment:
    found, supplied, _ = assign_splits(rows, DataSettings(test_split_ratio=0.1), False)
    stored = [np.flatnonzero(found == number) for number in range(3)]
    return SplitAssignment(
        train=stored[0], validation=stored[1], test=stored[2], supplied=supplied, table=rows, row_splits=found
    )


def test_saved_and_verified(tmp_path: Path) -> None:
    split = made(table(list(range(50))))
    split.save(tmp_path / "split.json")
    stored = load(tmp_path / "split.json")
    assert stored["format_version"] == 1
    assert sorted(stored["train"] + stored["validation"] + stored["test"]) == sorted(
        f"training/a.jsonl:{line}" for line in range(1, 51)
    )
    assert [f"training/a.jsonl:{row + 1}" for row in split.test] == stored["test"]
    split.verify(tmp_path / "split.json")


@pytest.mark.parametrize("change", ["swap", "drop", "newer", "torn"])
def test_another_split_is_not_verified(tmp_path: Path, change: str) -> None:
    path = tmp_path / "split.json"
    split = made(table(list(range(50))))
    split.save(path)
    stored = load(path)
    if change == "swap":
        stored["train"][0], stored["test"][0] = stored["test"][0], stored["train"][0]
    elif change == "drop":
        stored["validation"].pop()
    elif change == "newer":
        stored["format_version"] = 99
    path.write_text("{" if change == "torn" else json.dumps(stored))
    with pytest.raises(RunFolderError):
        split.verify(path)


def test_duplicates_across_splits_are_found() -> None:
    rows = table([1, 2, 1, 3, 2], near=[0, 1, 0, 3, 1])
    found = np.array([0, 0, 1, 2, -1], np.int8)
    assert duplicates_across(rows, found, "same") == [(2, 0)]
    assert duplicates_across(rows, found, "near") == [(2, 0)]
    assert duplicates_across(rows, np.zeros(5, np.int8), "same") == []
