"""Streams the rows of files: each row is a Record with its file and line.

    .jsonl           one JSON object a line; only \\n and \\r\\n end a line
    .json            JSON Lines, or one array of objects
    .csv .tsv .parquet   see tables.py (Parquet is known by its first bytes, whatever the file is called)
    .txt             pieces of whole lines, see `_read_text`

A row that cannot be read is added to `Problems` and reading continues. Templates are applied elsewhere.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

from luthier.data import tables
from luthier.data.channel import RowFile
from luthier.data.literals import JsonLiteral
from luthier.data.problems import Problems
from luthier.data.strict_utf8 import NotUtf8Error, Utf8Lines

PIECE_CHARACTERS = 2_000  # of a .txt piece: about a page
MAX_DEPTH = 1_000  # levels of nesting


@dataclass(frozen=True, slots=True)
class Record:
    """One input row: its fields as read, the file it came from, and its line (a Parquet row: its number), from 1."""

    fields: dict[str, Any]
    file: str
    line: int

    @property
    def source(self) -> str:
        return f"{self.file}:{self.line}"


class BadRowError(ValueError):
    """A row that violates its file format; `kind` groups similar errors."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def read(file: RowFile, problems: Problems, lines: frozenset[int] | None = None) -> Iterator[Record]:
    """Stream a file's rows. `lines`: only these, where the file was checked before."""
    try:
        if file.suffix == ".txt":
            yield from _read_text(file)
        elif tables.is_parquet(file.path):
            for line, fields in tables.parquet(file, problems):
                yield Record(fields, file.name, line)
        elif file.suffix in (".csv", ".tsv"):
            for line, fields in tables.csv_rows(file, problems):
                yield Record(fields, file.name, line)
        elif file.suffix == ".json" and _first_character(file) == "[":
            yield from _read_array(file, problems)
        else:
            yield from _read_json_lines(file, problems, lines)
    except NotUtf8Error as error:
        problems.add(file.name, error.line, "utf-8", str(error))


def _read_json_lines(file: RowFile, problems: Problems, lines: frozenset[int] | None) -> Iterator[Record]:
    for line, text in Utf8Lines(file.path):
        if lines is not None and line not in lines:
            continue
        if not text.strip(" \t\r\n"):
            problems.add_blank(file.name)
            continue
        try:
            fields = parse_object(text)
        except BadRowError as error:
            is_indented = error.kind == "json" and text.strip() in ("{", "[")
            hint = f"; a row is one line of {file.suffix}: write it without indentation" if is_indented else ""
            if error.kind == "object" and text.lstrip().startswith("[{"):
                hint = ": an array of rows; write one row a line, or name the file .json"
            problems.add(file.name, line, error.kind, str(error) + hint)
            continue
        yield Record(fields, file.name, line)


def parse_object(text: str) -> dict[str, Any]:
    """Parse one JSON object strictly: no duplicate keys, NaN, lone surrogates or nesting beyond 1,000 levels.

    Numbers and booleans become Literal text, as written.
    """
    parsed = parse_value(text)
    if not isinstance(parsed, dict):
        raise BadRowError("object", f"expected a JSON object, found {describe(parsed)}")
    return parsed


def parse_value(text: str) -> Any:
    """Parse any JSON value as strictly as `parse_object`; raises BadRowError."""
    try:
        parsed = _DECODER.decode(text) if text.count("[") + text.count("{") < MAX_DEPTH - 200 else _parse_deep(text)
    except json.JSONDecodeError as error:
        raise BadRowError("json", f"not JSON: {error.msg} at character {error.colno}") from None
    except RecursionError:
        raise BadRowError("nesting", f"nested more than {MAX_DEPTH:,} levels deep") from None
    if _SURROGATE.search(text):
        _refuse_lone_surrogates(text, parsed)
    return parsed


_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        names = [name for name, _ in pairs]
        duplicate = next(name for name in names if names.count(name) > 1)
        raise BadRowError("duplicate key", f"duplicate key {duplicate!r} in one object")
    for name, value in pairs:
        if value is True or value is False:
            fields[name] = JsonLiteral("true" if value else "false")
    return fields


def _constant(name: str) -> NoReturn:
    raise BadRowError("constant", f"{name} is not JSON; use null or a string, or remove the row")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_constant=_constant, parse_float=JsonLiteral, parse_int=JsonLiteral, strict=True
)


def _parse_deep(text: str) -> Any:
    """Parse text with many brackets: check its depth, then raise the recursion limit as needed."""
    depth = deepest = 0
    for match in _BRACKET_OR_STRING.finditer(text):
        character = match.group()[0]
        if character in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "]}":
            depth -= 1
    if deepest > MAX_DEPTH:
        raise BadRowError("nesting", f"nested {deepest:,} levels deep; at most {MAX_DEPTH:,} are allowed")
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(max(limit, 8 * MAX_DEPTH))
    try:
        return _DECODER.decode(text)
    finally:
        sys.setrecursionlimit(limit)


_BRACKET_OR_STRING = re.compile(r'[\[\]{}]|"(?:[^"\\]|\\.)*"', re.DOTALL)


def _refuse_lone_surrogates(text: str, parsed: Any) -> None:
    try:
        json.dumps(parsed, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        code = error.object[error.start : error.start + 1]
        message = f"a lone surrogate (\\u{ord(code):04x}) is not text; write the surrogate pair or the character itself"
        raise BadRowError("surrogate", message) from None
    except RecursionError:
        raise BadRowError("nesting", f"nested more than {MAX_DEPTH:,} levels deep") from None


def describe(value: Any) -> str:
    """Return the type of a parsed JSON value in words."""
    names = {dict: "an object", list: "a list", JsonLiteral: "a number or boolean", str: "a string", bool: "a boolean"}
    return "null" if value is None else names.get(type(value), type(value).__name__)


def _first_character(file: RowFile) -> str:
    return next((text.strip()[:1] for text in Utf8Lines(file.path).texts() if text.strip()), "")


def _read_array(file: RowFile, problems: Problems) -> Iterator[Record]:
    """Stream the objects of one JSON array.

    A record's `line` is its position in the array, from 1, as one line of the file may hold several.
    """
    try:
        for number, (line, text) in enumerate(_array_elements(file), 1):
            try:
                yield Record(parse_object(text), file.name, number)
            except BadRowError as error:
                problems.add(file.name, line, error.kind, str(error))
    except _BrokenArrayError as error:
        problems.add(file.name, error.line, "json", f"not JSON: {error}")


class _BrokenArrayError(ValueError):
    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line


_STRUCTURE = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{},]|"', re.DOTALL)


def _array_elements(file: RowFile) -> Iterator[tuple[int, str]]:
    """Yield (first line, text) of each element of the file's outermost array.

    JSON strings contain no raw line breaks, so the structure is scanned line by line.
    """
    depth = line = begins = 0
    closed = comma = False
    element: list[str] = []
    for line, text in Utf8Lines(file.path):
        done = 0
        for match in _STRUCTURE.finditer(text):
            mark = match.group()
            if mark == '"':
                raise _BrokenArrayError(line, "a string that does not end on its line")
            if depth == 0:
                if closed or mark != "[":
                    raise _BrokenArrayError(line, "text after the array's end")
                depth, done = 1, match.end()
            elif depth == 1 and mark in ",]":
                element.append(text[done : match.start()])
                body = "".join(element)
                if body.strip():
                    yield begins or line, body
                elif mark == "," or comma:
                    raise _BrokenArrayError(line, "a comma without a value beside it")
                element, done, begins, comma = [], match.end(), 0, mark == ","
                closed = mark == "]"
                depth -= closed
            elif mark in "[{":
                begins = begins or line
                depth += 1
            elif mark in "]}":
                depth -= 1
        if depth:
            element.append(text[done:])
        elif closed and text[done:].strip():
            raise _BrokenArrayError(line, "text after the array's end")
    if not closed:
        raise _BrokenArrayError(line, "the file ends inside the array")


def _read_text(file: RowFile) -> Iterator[Record]:
    """Yield pieces of whole lines of about PIECE_CHARACTERS each, unchanged; `line` is the first of a piece."""
    held: list[str] = []
    size = first = 0
    for line, text in Utf8Lines(file.path):
        first = first or line
        held.append(text)
        size += len(text)
        if size >= PIECE_CHARACTERS:
            yield Record({"text": "".join(held)}, file.name, first)
            held, size, first = [], 0, 0
    if held:
        yield Record({"text": "".join(held)}, file.name, first)
