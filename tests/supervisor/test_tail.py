"""An engine's log as events: each line once, with times that never go back, whatever was torn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from luthier.supervisor import tail
from luthier.supervisor.tail import EventLog


def messages(path: Path) -> list[str]:
    return [json.loads(line)["message"] for line in path.read_text("utf-8").splitlines()]


def test_lines_arrive_once_they_are_whole(tmp_path: Path) -> None:
    log, events = tmp_path / "engine.log", tmp_path / "logs" / "events.jsonl"
    follower = EventLog(log, events)
    assert follower.follow() == 0
    log.write_bytes("one\ntwö\nthr".encode())
    assert follower.follow() == 2
    with open(log, "ab") as handle:
        handle.write(b"ee\r\n\nbad \xff byte\nlast")
    assert follower.follow() == 3
    assert follower.follow() == 0
    assert follower.follow(last=True) == 1
    assert messages(events) == ["one", "twö", "three", "", "bad \ufffd byte", "last"]
    assert follower.last_line() == "last"


def test_after_a_kill_it_goes_on_where_the_events_end(tmp_path: Path) -> None:
    log, events = tmp_path / "engine.log", tmp_path / "events.jsonl"
    log.write_text("one\ntwo\n")
    EventLog(log, events).follow()
    with open(events, "a") as handle:
        handle.write('{"timestamp": 1, "message": "tw')
    with open(log, "a") as handle:
        handle.write("three\n")
    again = EventLog(log, events)
    again.append("luthier: going on")
    again.follow()
    assert messages(events) == ["one", "two", "luthier: going on", "three"]
    assert EventLog(log, events).follow(last=True) == 0


def test_a_file_torn_in_its_first_line_starts_over(tmp_path: Path) -> None:
    log, events = tmp_path / "engine.log", tmp_path / "events.jsonl"
    log.write_text("one\n")
    events.write_text('{"timestamp": 1, "mess')
    EventLog(log, events).follow()
    assert messages(events) == ["one"]


def test_a_line_longer_than_an_event_becomes_several(tmp_path: Path) -> None:
    log, events = tmp_path / "engine.log", tmp_path / "events.jsonl"
    log.write_bytes(b"x" * (2 * tail.MAX_EVENT_BYTES + 5))
    follower = EventLog(log, events)
    assert follower.follow() == 1  # it has no end yet, and is too long to wait for it
    while follower.follow(last=True):
        pass
    assert [len(message) for message in messages(events)] == [tail.MAX_EVENT_BYTES, tail.MAX_EVENT_BYTES, 5]
    again = EventLog(log, events)  # the last event is longer than what is read at once from the end
    assert again.follow(last=True) == 0


def test_times_never_go_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = tmp_path / "events.jsonl"
    for now in (100.0, 90.0, 101.0):
        monkeypatch.setattr("luthier.supervisor.tail.time.time", lambda now=now: now)
        EventLog(tmp_path / "none", events).append("x")
    assert [json.loads(line)["timestamp"] for line in events.read_text().splitlines()] == [100_000, 100_000, 101_000]


def test_a_log_that_is_all_events_is_emptied(tmp_path: Path) -> None:
    log, events = tmp_path / "engine.log", tmp_path / "events.jsonl"
    follower = EventLog(log, events)
    log.write_text("one\ntwo\nthr")
    assert not follower.truncate_log()  # a line has no end yet
    with open(log, "a") as handle:
        handle.write("ee\n")
    assert follower.truncate_log()
    assert log.stat().st_size == 0
    assert follower.last_line() == "three"
    log.write_text("four\n")
    follower.follow()
    again = EventLog(log, events)
    assert again.follow() == 0
    said = messages(events)
    assert [line for line in said if "truncated after 14 bytes" not in line] == ["one", "two", "three", "four"]
    assert len(said) == 5


def test_a_kill_between_emptying_and_saying_so(tmp_path: Path) -> None:
    log, events = tmp_path / "engine.log", tmp_path / "events.jsonl"
    log.write_text("a line of some length\n")
    EventLog(log, events).follow()
    log.write_text("next\n")
    EventLog(log, events).follow()
    assert messages(events) == ["a line of some length", "next"]


def test_the_oldest_events_are_dropped(tmp_path: Path) -> None:
    log, events = tmp_path / "engine.log", tmp_path / "events.jsonl"
    follower = EventLog(log, events, min_bytes=5_000)
    for number in range(500):
        with open(log, "a") as handle:
            handle.write(f"line {number}\n")
        follower.follow()
        assert events.stat().st_size <= 10_034
    lines = [json.loads(line) for line in events.read_text().splitlines()]
    assert "dropped" in lines[0]
    numbers = [int(line["message"].split()[1]) for line in lines[1:]]
    assert numbers == list(range(numbers[0], 500))
    assert EventLog(log, events, min_bytes=5_000).follow() == 0
