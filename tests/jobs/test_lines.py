"""Places of lines stay theirs when the oldest are dropped, however often."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from luthier.jobs.lines import Lines, drop_oldest


def write(path: Path, first: int, count: int) -> None:
    with open(path, "a", encoding="utf-8") as handle:
        for number in range(first, first + count):
            message = f"line {number} {chr(252) * (number % 7)}"
            handle.write(json.dumps({"timestamp": number * 10, "message": message}, ensure_ascii=False) + "\n")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    lines = Lines(tmp_path / "none" / "events.jsonl")
    assert lines.bounds(1, 2) == (0, 0)
    assert list(lines.after(0, 10)) == []
    assert lines.before(10, 0, 10) == []
    drop_oldest(lines.path, 10)


@pytest.mark.parametrize("times", [1, 3])
def test_what_is_kept_is_found_where_it_was(tmp_path: Path, times: int) -> None:
    path = tmp_path / "events.jsonl"
    lines = Lines(path)
    write(path, 0, 1000)
    before = list(lines.after(*lines.bounds()))
    assert len(before) == 1000
    for kept in [15_000, 10_000, 5_000][:times]:
        drop_oldest(path, kept)
        assert kept <= path.stat().st_size < kept + 150
    low, high = lines.bounds()
    now = list(lines.after(low, high))
    assert now == before[-len(now) :]
    assert 0 < len(now) < 1000
    assert low == now[0][0] > 0
    assert lines.before(high, low, 1000) == now
    assert lines.before(high, 0, 3) == now[-3:]
    assert next(lines.after(0, high)) == now[0]  # what is gone leads to the oldest that is there
    assert next(lines.after(now[5][0] + 3, high)) == now[5]
    assert lines.before(low, 0, 10) == []
    start, end = lines.bounds(9_900, 9_950)
    assert [json.loads(text)["timestamp"] for _, _, text in lines.after(start, end)] == [9_900, 9_910, 9_920, 9_930,
                                                                                         9_940]  # fmt: skip
    assert lines.bounds(0)[0] == low
    write(path, 1000, 10)
    assert list(lines.after(low, lines.bounds()[1]))[: len(now)] == now
    assert len(list(lines.after(*lines.bounds()))) == len(now) + 10


def test_little_is_not_dropped(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    write(path, 0, 10)
    whole = path.read_bytes()
    drop_oldest(path, len(whole))
    assert path.read_bytes() == whole


def test_a_call_reads_a_bounded_amount(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    write(path, 0, 100)
    lines = Lines(path, 200)
    low, high = lines.bounds()
    assert 0 < len(list(lines.after(low, high))) < 6
    assert 0 < len(lines.before(high, low, 100)) < 6
    assert len(list(lines.after(low, high, 2))) == 2
