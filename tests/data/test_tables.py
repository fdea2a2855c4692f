from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.data import records
from luthier.data.channel import RowFile
from luthier.data.problems import Problems


def read(path: Path) -> tuple[list[dict[str, Any]], list[int], list[str]]:
    problems = Problems()
    rows = list(records.read(RowFile("training", path.name, path), problems))
    return [row.fields for row in rows], [row.line for row in rows], [str(problem) for problem in problems.to_list()]


def csv_file(tmp_path: Path, content: str) -> Path:
    (tmp_path / "a.csv").write_bytes(content.encode())
    return tmp_path / "a.csv"


def test_cells_are_kept_exactly_as_written(tmp_path: Path) -> None:
    content = 'input,output\nNA,007\n" a\n\r\nb ","say ""hi"", ok"\n1.0,\nnull,TRUE\n1e5,2020-01-01\r\n'
    fields, lines, problems = read(csv_file(tmp_path, content))
    assert not problems
    assert [tuple(row.values()) for row in fields] == [
        ("NA", "007"), (" a\n\r\nb ", 'say "hi", ok'), ("1.0", ""), ("null", "TRUE"), ("1e5", "2020-01-01"),
    ]  # fmt: skip
    assert lines == [2, 3, 6, 7, 8]


@given(st.lists(st.tuples(st.text(), st.text()), min_size=1, max_size=8))
def test_whatever_python_writes_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, cells: list[tuple[str, str]]
) -> None:
    cells = [(a.encode("utf-8", "replace").decode(), b.encode("utf-8", "replace").decode()) for a, b in cells]
    buffer = io.StringIO()
    writer = csv.writer(buffer, quoting=csv.QUOTE_ALL)
    writer.writerow(["input", "output"])
    writer.writerows(cells)
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    path.write_bytes(buffer.getvalue().encode())
    fields, _, problems = read(path)
    assert not problems
    assert [tuple(row.values()) for row in fields] == cells


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("input,output\na,b\na,b,c\n", "a.csv:3: 3 cells where the header has 2"),
        ("input,output\na\n", "a.csv:2: 1 cells where the header has 2"),
        ('input,output\na,b\n"x,y\nz\n', "a.csv:3: a quote that opens in this row is never closed"),
        ("input,input\na,b\n", "a.csv:1: duplicate column 'input'"),
        ('input,output\n"a"b,c\n', "a.csv:2: text after a closing quote"),
        ("input,output\na\rb,c\n", "a.csv:2: a lone carriage return"),
        ("", "the file is empty"),
    ],
)
def test_a_bad_table_is_refused_with_its_line(tmp_path: Path, content: str, message: str) -> None:
    _, _, problems = read(csv_file(tmp_path, content))
    assert len(problems) == 1
    assert message in problems[0]


def test_blank_lines_are_no_rows(tmp_path: Path) -> None:
    fields, lines, problems = read(csv_file(tmp_path, "\ufeffinput,output\n\na,b\n\n"))
    assert not problems
    assert fields == [{"input": "a", "output": "b"}]
    assert lines == [3]


def test_bad_utf8_in_a_table(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"input,output\na,b\n\xe9,c\n")
    assert "a.csv:3: not UTF-8: 0xe9" in read(tmp_path / "a.csv")[2][0]


ROWS = {"input": ["NA", None, "007", "x\ny", ""], "output": ["é", "b", "c", "None", None]}


@pytest.mark.parametrize("compression", ["none", "snappy", "gzip", "zstd", "lz4", "brotli"])
@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string()),
                                  pa.string_view()])  # fmt: skip
def test_parquet_of_any_make(tmp_path: Path, compression: str, kind: Any) -> None:
    table = pa.table({name: pa.array(cells, pa.string()).cast(kind) for name, cells in ROWS.items()})
    pq.write_table(table, tmp_path / "a.parquet", compression=compression, row_group_size=2)
    fields, lines, problems = read(tmp_path / "a.parquet")
    assert not problems
    assert [row["input"] for row in fields] == ROWS["input"]
    assert [row["output"] for row in fields] == ROWS["output"]
    assert lines == [1, 2, 3, 4, 5]


def test_parquet_is_known_by_its_content(tmp_path: Path) -> None:
    pq.write_table(pa.table({"input": ["a"], "output": ["b"]}), tmp_path / "a.csv")
    assert read(tmp_path / "a.csv")[0] == [{"input": "a", "output": "b"}]


def test_a_torn_parquet_file_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"input": ["a"] * 100, "output": ["b"] * 100}), tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:200])
    assert "not a readable Parquet file" in read(tmp_path / "b.parquet")[2][0]
