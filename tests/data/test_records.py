from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from luthier.data import records
from luthier.data.channel import RowFile
from luthier.data.problems import Problems
from luthier.data.records import Record


def read(path: Path, content: bytes | None = None) -> tuple[list[Record], list[str], Problems]:
    if content is not None:
        path.write_bytes(content)
    problems = Problems()
    rows = list(records.read(RowFile("training", path.name, path), problems))
    return rows, [str(problem) for problem in problems.to_list()], problems


def fields_of(rows: list[Record]) -> list[dict[str, Any]]:
    return [row.fields for row in rows]


def test_only_newlines_break_json_lines(tmp_path: Path) -> None:
    text = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg"
    content = json.dumps({"q": text}, ensure_ascii=False).replace("\\u000b", "\x0b").replace("\\f", "\x0c")
    content = content.replace("\x0b", "\\u000b").replace("\x0c", "\\f").replace("\x1c", "\\u001c")
    rows, problems, _ = read(tmp_path / "a.jsonl", f"{content}\n{content}\r\n".encode())
    assert not problems
    assert [row.fields["q"] for row in rows] == [text, text]
    assert [row.line for row in rows] == [1, 2]


def test_bom_crlf_blank_lines_and_no_final_newline(tmp_path: Path) -> None:
    content = b'\xef\xbb\xbf{"q": "1"}\r\n\r\n   \n{"q": "\xef\xbb\xbf2"}'
    rows, problems, found = read(tmp_path / "a.jsonl", content)
    assert not problems
    assert fields_of(rows) == [{"q": "1"}, {"q": "\ufeff2"}]
    assert [row.source for row in rows] == ["a.jsonl:1", "a.jsonl:4"]
    assert found.blank_lines == {"a.jsonl": 2}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"q": "\xff"}', "a.jsonl:2: not UTF-8: 0xff at byte 8"),
        ('{"q": "é"}'.encode("latin-1"), "a.jsonl:2: not UTF-8: 0xe9"),
        (b'{"q": 1,}', "a.jsonl:2: not JSON"),
        (b"{'q': 1}", "a.jsonl:2: not JSON"),
        (b"[1]", "expected a JSON object, found a list"),
        (b"null", "expected a JSON object, found null"),
        (b'{"q": "1", "q": "2"}', "duplicate key 'q'"),
        (b'{"x": {"q": "1", "q": "2"}}', "duplicate key 'q'"),
        (b'{"q": NaN}', "NaN is not JSON"),
        (b'{"q": -Infinity}', "-Infinity is not JSON"),
        (b'{"q": "\\ud800"}', "a lone surrogate \\(\\\\ud800\\)"),
        (b'{"q": "a"} {"q": "b"}', "not JSON"),
        (b'{"q": "\tx"}', "not JSON"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    _, problems, _ = read(tmp_path / "a.jsonl", b'{"q": "ok"}\n' + content + b'\n{"q": "ok"}\n')
    assert len(problems) == 1
    assert re.search(message, problems[0]), problems[0]


def test_utf16_is_named(tmp_path: Path) -> None:
    _, problems, _ = read(tmp_path / "a.jsonl", '{"q": 1}'.encode("utf-16"))
    assert "UTF-16" in problems[0]


@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
@pytest.mark.parametrize("depth", [1_001, 5_000, 200_000])
def test_nesting_over_a_thousand_levels_is_refused_cleanly(tmp_path: Path, opening: bytes, depth: int) -> None:
    closing = b"]" if opening == b"[" else b"}"
    value = opening * depth + b"1" + closing * depth
    rows, problems, _ = read(tmp_path / "a.jsonl", b'{"q": ' + value + b'}\n{"q": "ok"}\n')
    assert len(problems) == 1
    assert "levels deep" in problems[0]
    assert fields_of(rows) == [{"q": "ok"}]


def test_nesting_up_to_a_thousand_levels_is_read(tmp_path: Path) -> None:
    value = b"[" * 999 + b"]" * 999
    rows, problems, _ = read(tmp_path / "a.jsonl", b'{"q": "ok", "deep": ' + value + b"}\n")
    assert not problems
    assert rows[0].fields["q"] == "ok"


def test_many_brackets_that_are_text_are_no_nesting(tmp_path: Path) -> None:
    rows, problems, _ = read(tmp_path / "a.jsonl", json.dumps({"q": "[{" * 5000 + '"'}).encode())
    assert not problems
    assert rows[0].fields["q"] == "[{" * 5000 + '"'


def test_numbers_and_booleans_become_text_as_written(tmp_path: Path) -> None:
    huge = b"9" * 5000
    rows, problems, _ = read(tmp_path / "a.jsonl", b'{"a": 1.10, "b": 1E5, "c": true, "d": -0, "e": ' + huge + b"}")
    assert not problems
    assert rows[0].fields == {"a": "1.10", "b": "1E5", "c": "true", "d": "-0", "e": huge.decode()}


def test_two_megabyte_lines_survive(tmp_path: Path) -> None:
    rows, problems, _ = read(tmp_path / "a.jsonl", json.dumps({"q": "x" * 2_000_000}).encode())
    assert not problems
    assert len(rows[0].fields["q"]) == 2_000_000


def test_wanted_lines_only(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(f'{{"q": "{line}"}}\n' for line in range(1, 10)))
    rows = list(records.read(RowFile("training", "a.jsonl", path), Problems(), frozenset({2, 7})))
    assert fields_of(rows) == [{"q": "2"}, {"q": "7"}]


ARRAYS = [
    '[{"text": "a"}, {"text": "b, ]}[{"}]',
    '[\n {"text": "a"},\n {"text":\n   "b, ]}[{"}\n]\n',
    '[{"text": "a"\n}\n,\n{"text": "b, ]}[{"}]',
]


@pytest.mark.parametrize("content", ARRAYS)
def test_an_array_of_objects_is_streamed(tmp_path: Path, content: str) -> None:
    rows, problems, _ = read(tmp_path / "a.json", content.encode())
    assert not problems
    assert fields_of(rows) == [{"text": "a"}, {"text": "b, ]}[{"}]


def test_array_rows_are_numbered_and_their_faults_have_lines(tmp_path: Path) -> None:
    rows, problems, _ = read(tmp_path / "a.json", b'[\n{"text": "a"}, {"text":\n"b"},\n3]')
    assert [row.line for row in rows] == [1, 2]
    assert problems == ["a.json:4: expected a JSON object, found a number or boolean"]


@pytest.mark.parametrize(
    "content",
    [b'[{"text": "a"}', b'[{"text": "a"}]]', b'[{"text": "a"},,{"text": "b"}]', b'[{"text": "a}]',
     b'[1, {"text": "a"}]', b'[{"text": "a"},]', b'[{"text": "a"}] tail', b'[{"text": "a" "b"}]', b"["],
)  # fmt: skip
def test_a_broken_array_is_refused(tmp_path: Path, content: bytes) -> None:
    _, problems, _ = read(tmp_path / "a.json", content)
    assert problems


def test_json_lines_in_a_json_file(tmp_path: Path) -> None:
    rows, problems, _ = read(tmp_path / "a.json", b'{"text": "a"}\n{"text": "b"}\n')
    assert not problems
    assert len(rows) == 2


def test_text_pieces_are_whole_lines_and_lose_nothing(tmp_path: Path) -> None:
    text = "".join(f"line {number} \u2028 x\r\n" for number in range(2000)) + "no newline at the end"
    rows, problems, _ = read(tmp_path / "a.txt", text.encode())
    assert not problems
    assert "".join(row.fields["text"] for row in rows) == text
    assert all(row.fields["text"].endswith("\n") for row in rows[:-1])
    assert len(rows) > 10
    lines = text.split("\n")
    assert all(row.fields["text"].startswith(lines[row.line - 1]) for row in rows)
