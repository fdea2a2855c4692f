"""Logs as CloudWatch shows them: groups, streams, pages both ways, times and filters."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from luthier.jobs.logs import ENDPOINTS, TRAINING, Logs, LogStream, Window
from luthier.jobs.progress import EndpointProgress, ServedVariant
from luthier.jobs.resource import Resource, new_resource
from luthier.jobs.settings import ServiceSettings
from luthier.jobs.store import Store
from luthier.protocol.errors import WireError

OWNER = ("123456789012", "us-east-1")


@pytest.fixture
def logs(tmp_path: Path) -> Iterator[Logs]:
    settings = ServiceSettings(home=tmp_path)
    store = Store.open(settings.database_url)
    yield Logs(settings, store)
    store.close()


def write(path: Path, count: int, message: str = "line {}") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [{"timestamp": 1000 + number * 10, "message": message.format(number), "offset": number}
             for number in range(count)]  # fmt: skip
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def job(logs: Logs, name: str, count: int, kind: str = "training-job", message: str = "line {}") -> Resource:
    made = new_resource(kind, OWNER, name, {})
    logs.store.insert(made)
    if kind == "automl-job":  # the log is its training job's
        made = new_resource("training-job", OWNER, f"{name}-tr-1", {}, parent=made.id)
        logs.store.insert(made)
    if count:
        write(logs.settings.jobs / made.id / "logs" / "events.jsonl", count, message)
    return made


def only(logs: Logs, prefix: str) -> LogStream:
    (found,) = logs.streams(OWNER, TRAINING, prefix)
    return found


def messages(page: Any) -> list[str]:
    return [event.message for event in page.events]


def test_streams_are_found_by_prefix(logs: Logs) -> None:
    first = job(logs, "tune-1", 3)
    job(logs, "tune-10", 3)
    job(logs, "other-tune-1", 3)
    job(logs, "tune-2", 0)
    job(logs, "auto", 2, "automl-job")
    for prefix, expected in (("", ["auto", "other-tune-1", "tune-1", "tune-10"]), ("tune-1", ["tune-1", "tune-10"])):
        assert [one.name.split("/")[0] for one in logs.streams(OWNER, TRAINING, prefix)] == expected
    stream = only(logs, "tune-1/")
    assert stream.name == f"tune-1/algo-1-{int(first.created)}"
    assert (stream.first, stream.last) == (1000, 1020)
    assert logs.stream(OWNER, TRAINING, stream.name) == stream
    assert logs.streams(("123456789012", "us-west-2"), TRAINING) == []


def test_groups_are_those_with_resources(logs: Logs) -> None:
    assert logs.groups(OWNER) == []
    job(logs, "one", 1)
    endpoint = logs.store.create(
        "endpoint", OWNER, "chat", {}, progress=EndpointProgress(variants=(ServedVariant(name="AllTraffic"),))
    )
    assert [group.name for group in logs.groups(OWNER)] == [ENDPOINTS + "chat", TRAINING]
    assert [group.name for group in logs.groups(OWNER, ENDPOINTS + "ch")] == [ENDPOINTS + "chat"]
    assert [group.name for group in logs.groups(OWNER, "/aws/sagemaker/T")] == [TRAINING]
    assert logs.groups(OWNER, "/aws/lambda") == []
    assert logs.streams(OWNER, ENDPOINTS + "chat") == []
    write(logs.settings.endpoints / endpoint.id / "AllTraffic" / "logs" / "events.jsonl", 1)
    (stream,) = logs.streams(OWNER, ENDPOINTS + "chat", "All")
    assert stream.name == f"AllTraffic/i-{endpoint.id[:17]}"


@pytest.mark.parametrize("group", ["/aws/lambda/x", ENDPOINTS + "none", "", ENDPOINTS])
def test_an_unknown_group_or_stream_is_refused(logs: Logs, group: str) -> None:
    with pytest.raises(WireError) as refused:
        logs.streams(OWNER, group)
    assert refused.value.code == "ResourceNotFoundException"
    with pytest.raises(WireError, match="log stream does not exist"):
        logs.stream(OWNER, TRAINING, "none/algo-1-1")


def test_pages_from_the_head_meet_every_event_once_and_end(logs: Logs) -> None:
    made = job(logs, "long", 25, message="line {} 🦜")
    stream = only(logs, "long/")
    seen: list[str] = []
    token = None
    while True:
        page = logs.events(stream, Window(limit=7), token, from_head=True)
        seen += messages(page)
        if page.forward == token:
            break
        token = page.forward
    assert seen == [f"line {number} 🦜" for number in range(25)]
    path = logs.settings.jobs / made.id / "logs" / "events.jsonl"
    with open(path, "a") as handle:
        handle.write('{"timestamp": 5000, "message": "late", "offset": 9}\n{"timestamp": 5001, "mess')
    assert messages(logs.events(stream, Window(), token, from_head=True)) == ["late"]


def test_pages_from_the_tail_go_backwards(logs: Logs) -> None:
    job(logs, "long", 10)
    stream = only(logs, "long/")
    last = logs.events(stream, Window(limit=4))
    assert messages(last) == ["line 6", "line 7", "line 8", "line 9"]
    before = logs.events(stream, Window(limit=4), last.backward)
    assert messages(before) == ["line 2", "line 3", "line 4", "line 5"]
    assert messages(logs.events(stream, Window(limit=4), before.forward)) == ["line 6", "line 7", "line 8", "line 9"]
    head = logs.events(stream, Window(limit=4), before.backward)
    assert messages(head) == ["line 0", "line 1"]
    assert logs.events(stream, Window(limit=4), head.backward).backward == head.backward


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [(None, None, range(10)), (1030, None, range(3, 10)), (1031, None, range(4, 10)), (None, 1030, range(3)),
     (1030, 1060, range(3, 6)), (0, 1, []), (9999, None, []), (1050, 1050, []), (1060, 1030, [])],
)  # fmt: skip
@pytest.mark.parametrize("from_head", [True, False])
def test_times_narrow_a_log(
    logs: Logs, start: int | None, end: int | None, expected: list[int], from_head: bool
) -> None:
    job(logs, "timed", 10)
    page = logs.events(only(logs, "timed/"), Window(start, end), from_head=from_head)
    assert messages(page) == [f"line {number}" for number in expected]


@pytest.mark.parametrize("token", ["", "f/", "x/1", "f/-1", "f/1x", "b/" + "9" * 30])
def test_a_token_of_somebody_elses_is_refused(logs: Logs, token: str) -> None:
    job(logs, "one", 3)
    with pytest.raises(WireError, match="nextToken is invalid"):
        logs.events(only(logs, "one/"), Window(), token)


def test_a_token_into_the_middle_of_a_line_or_beyond_shows_whole_lines(logs: Logs) -> None:
    job(logs, "one", 3)
    stream = only(logs, "one/")
    assert messages(logs.events(stream, Window(), f"f/{stream.size - 3}")) == ["line 2"]
    assert messages(logs.events(stream, Window(), f"f/{stream.size * 9}")) == []
    assert messages(logs.events(stream, Window(), f"b/{stream.size * 9}")) == ["line 0", "line 1", "line 2"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("", ["loss 0.5 up", "error: loss", "warning: disk", "all well"]),
        ("loss", ["loss 0.5 up", "error: loss"]),
        ('"loss 0.5"', ["loss 0.5 up"]),
        ("loss -error", ["loss 0.5 up"]),
        ("?error ?warning", ["error: loss", "warning: disk"]),
        ("LOSS", []),
    ],
)
def test_filters_are_terms(logs: Logs, pattern: str, expected: list[str]) -> None:
    made = job(logs, "one", 1)
    lines = [{"timestamp": 1, "message": message, "offset": 0}
             for message in ["loss 0.5 up", "error: loss", "warning: disk", "all well"]]  # fmt: skip
    path = logs.settings.jobs / made.id / "logs" / "events.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = logs.filter(logs.streams(OWNER, TRAINING), Window(), pattern)
    assert [event.message for event in found.events] == expected
    assert found.token is None


@pytest.mark.parametrize("pattern", ["{ $.x = 1 }", "[a, b]", '"open', "%regex%"])
def test_other_patterns_are_refused(logs: Logs, pattern: str) -> None:
    job(logs, "one", 1)
    with pytest.raises(WireError, match="Invalid filter pattern"):
        logs.filter(logs.streams(OWNER, TRAINING), Window(), pattern)


def test_filtering_goes_on_by_token_over_streams(logs: Logs) -> None:
    job(logs, "a", 5)
    job(logs, "b", 5)
    streams = logs.streams(OWNER, TRAINING)
    found, token, ids = [], None, set()
    while True:
        page = logs.filter(streams, Window(limit=2), "line", token)
        found += [(event.stream[0], event.message) for event in page.events]
        ids |= {event.id for event in page.events}
        token = page.token
        if token is None:
            break
    assert found == [(name, f"line {number}") for name in "ab" for number in range(5)]
    for bad in ("x", "1", "-1/a", "/a"):
        with pytest.raises(WireError, match="nextToken"):
            logs.filter(streams, Window(), "line", bad)
