from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luthier.data.build import mask_to_spans
from luthier.data.tokens import TokenStore, TokenWriter


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.lists(st.tuples(st.integers(0, 99_999), st.booleans()), max_size=20), max_size=10),
    st.booleans(),
)
def test_rows_come_back(tmp_path: Path, rows: list[list[tuple[int, bool]]], completion_only: bool) -> None:
    writer = TokenWriter(tmp_path, 100_000)
    for row in rows:
        writer.append(np.array([number for number, _ in row]), mask_to_spans(np.array([flag for _, flag in row], bool)))
    writer.close()
    store = TokenStore(tmp_path, 100_000, completion_only)
    assert len(store) == len(rows)
    for place, row in enumerate(rows):
        ids, trained = store.row(place)
        assert ids.dtype == np.int64
        assert ids.tolist() == [number for number, _ in row]
        expected = [at > 0 and (flag or not completion_only) for at, (_, flag) in enumerate(row)]
        assert trained.tolist() == expected
        assert store.lengths[place] == len(row)
        assert store.trained_counts[place] == sum(expected)


def test_all_turns_lie_beside_the_completions(tmp_path: Path) -> None:
    writer = TokenWriter(tmp_path, 100, turns=True)
    writer.append(np.arange(8), [(5, 8)], [(0, 3), (5, 8)])
    writer.append(np.arange(4), [(2, 4)], [(2, 4)])
    writer.close()
    completions, turns = TokenStore(tmp_path, 100), TokenStore(tmp_path, 100, completion_only=False, turns=True)
    everything = TokenStore(tmp_path, 100, completion_only=False)
    assert np.flatnonzero(completions.row(0)[1]).tolist() == [5, 6, 7]
    assert np.flatnonzero(turns.row(0)[1]).tolist() == [1, 2, 5, 6, 7]
    assert [store.trained_counts.tolist() for store in (completions, turns, everything)] == [[3, 2], [5, 2], [7, 3]]
    assert [store.completion_only for store in (completions, turns, everything)] == [True, False, False]


@pytest.mark.parametrize(("vocabulary", "size"), [(50_257, 2), (65_536, 2), (65_537, 4)])
def test_ids_take_the_smallest_type(tmp_path: Path, vocabulary: int, size: int) -> None:
    writer = TokenWriter(tmp_path, vocabulary)
    writer.append(np.array([0, vocabulary - 1]), [(1, 2)])
    writer.close()
    assert (tmp_path / "ids.bin").stat().st_size == 2 * size
    assert TokenStore(tmp_path, vocabulary).row(0)[0].tolist() == [0, vocabulary - 1]
