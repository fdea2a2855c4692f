"""Reads rows of CSV and Parquet, each cell exactly as written. No type is inferred: `NA` and `007` stay text.

CSV is RFC 4180 (comma, in .tsv files a tab; double quotes, doubled inside quotes, quoted line breaks kept) with a
header. Ragged rows, duplicate headers and unclosed quotes are refused. Lists and structs of Parquet become what JSON
Lines would give.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from luthier.data.channel import RowFile
from luthier.data.literals import JsonLiteral
from luthier.data.problems import Problems
from luthier.data.strict_utf8 import NotUtf8Error, Utf8Lines

_MAGIC = b"PAR1"
_CELL = 64 * 1024 * 1024  # characters; a larger cell means an unclosed quote
_BATCH = 512  # rows of a Parquet batch

csv.field_size_limit(_CELL)


def is_parquet(path: Path) -> bool:
    """Whether the file starts with Parquet's magic bytes."""
    with open(path, "rb") as handle:
        return handle.read(4) == _MAGIC


def csv_rows(file: RowFile, problems: Problems) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (first line, cells by column) of each row; blank lines are skipped."""
    lines = Utf8Lines(file.path)
    reader = csv.reader(lines.texts(), strict=True, delimiter=_delimiter(file))
    header: list[str] | None = None
    start_line = 1
    while True:
        start_line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            problems.add(file.name, start_line, "csv", _reason(error))
            return  # after an unclosed quote the row boundaries are unknown
        if not cells:
            problems.add_blank(file.name)
            continue
        if header is None:
            header = cells
            if _bad_header(file, header, start_line, problems):
                return
        elif len(cells) != len(header):
            message = f"{len(cells)} cells where the header has {len(header)}; quote cells that hold a comma or a quote"
            problems.add(file.name, start_line, "ragged", message)
        else:
            yield start_line, dict(zip(header, cells, strict=True))
    if header is None:
        problems.add(file.name, 0, "header", "the file is empty; expected a header line")


def _reason(error: csv.Error) -> str:
    text = str(error)
    if "unexpected end of data" in text or "field larger" in text:
        return "a quote that opens in this row is never closed"
    if "new-line character" in text:
        return "a lone carriage return outside quotes; end lines with \\n or \\r\\n"
    if "expected after" in text:
        return "text after a closing quote; double the quotes that belong to a cell"
    return f"not CSV: {text}"


def _delimiter(file: RowFile) -> str:
    return "\t" if file.suffix == ".tsv" else ","


def _bad_header(file: RowFile, header: list[str], line: int, problems: Problems) -> bool:
    if header[0].lower().startswith("sep="):
        problems.add(file.name, line, "header", "the first line is Excel's 'sep=...', not a header; remove it")
        return True
    other = next((mark for mark in ("\t", ";") if len(header) == 1 and mark in header[0]), None)
    if other:
        name = "tabs" if other == "\t" else "semicolons"
        fix = "name the file .tsv, or save it with commas" if other == "\t" else "save it with commas"
        problems.add(file.name, line, "header", f"the columns are separated by {name}; {fix}")
        return True
    for name in header:
        if header.count(name) > 1:
            problems.add(file.name, line, "header", f"duplicate column {name!r} in the header")
            return True
    return False


def columns(file: RowFile, problems: Problems) -> list[str]:
    """Return the column names of a table; none when its header cannot be read."""
    if is_parquet(file.path):
        opened = _open(file, problems)
        return list(opened.schema_arrow.names) if opened else []
    try:
        return list(next(csv.reader(Utf8Lines(file.path).texts(), strict=True, delimiter=_delimiter(file)), []))
    except (csv.Error, NotUtf8Error):
        return []  # reading its rows reports the problem


def parquet(file: RowFile, problems: Problems) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (row number from 1, cells by column; None for a null) of each row."""
    opened = _open(file, problems)
    if opened is None:
        return
    schema = opened.schema_arrow
    for name in schema.names:
        if schema.names.count(name) > 1:
            problems.add(file.name, 0, "header", f"duplicate column {name!r}")
            return
    read = [column.name for column in schema if _is_text(column.type) or _is_nested(column.type)]
    row = 0
    try:
        for batch in opened.iter_batches(batch_size=_BATCH, use_threads=False):
            cells = [
                [_json_value(cell) for cell in column.to_pylist()]
                if name in read
                else [NonTextCell(str(column.type))] * len(batch)
                for name, column in zip(batch.schema.names, batch.columns, strict=True)
            ]
            for values in zip(*cells, strict=True):
                row += 1
                yield row, dict(zip(schema.names, values, strict=True))
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        problems.add(file.name, row + 1, "parquet", f"unreadable from this row on: {_first_line(error)}")


class NonTextCell:
    """A cell of a column that is not text, with the name of the column's type for the error message."""

    def __init__(self, name: str) -> None:
        self.name = name


def _open(file: RowFile, problems: Problems) -> pq.ParquetFile | None:
    try:
        return pq.ParquetFile(file.path)
    except (pa.ArrowException, OSError) as error:
        problems.add(file.name, 0, "parquet", f"not a readable Parquet file: {_first_line(error)}")
        return None


def _is_text(kind: Any) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_nested(kind: Any) -> bool:
    return bool(pa.types.is_struct(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind))


def _json_value(value: Any) -> Any:
    """A cell as JSON Lines would give it. A struct has every field of its column, so a null one is left out."""
    if isinstance(value, dict):
        return {name: _json_value(item) for name, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_json_value(item) for item in value]
    if isinstance(value, bool):
        return JsonLiteral("true" if value else "false")
    if isinstance(value, int | float):
        return JsonLiteral(repr(value))
    return value if value is None or isinstance(value, str) else NonTextCell(type(value).__name__)


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
