"""Row formats: how a record of each kind is validated and rendered as an Example.

    faults(record)    problems of the record
    example(record)   the rendered record: the text the model sees
    values(record)    the record's own text without the template, for finding duplicates

Each handles one record at a time, without files, splits or tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from luthier.data.chat import ASSISTANT, LAST, ChatError, ChatTemplate, read_messages
from luthier.data.example import Example, Piece
from luthier.data.records import Record, describe
from luthier.data.tables import NonTextCell
from luthier.data.template import Template

_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True, slots=True)
class Fault:
    """A problem of a record. `kind` groups similar ones."""

    kind: str
    message: str
    field: str = ""


class RowFormat(Protocol):
    """The interface of all row formats."""

    def faults(self, record: Record) -> Iterator[Fault]:
        """Yield the problems of the record."""

    def example(self, record: Record) -> Example:
        """Render the record."""

    def values(self, record: Record) -> list[str]:
        """Return the record's own text."""

    def is_empty(self, record: Record, example: Example) -> bool:
        """Whether the completion is empty, so that only the end of text could be learned."""


def text_of(value: Any) -> str | None:
    """Return a field's text: a string, or a number or boolean as the file writes it; None for anything else."""
    return str(value) if isinstance(value, str) else None


def fault_of(record: Record, field: str, needed_by: str) -> Fault | None:
    """Return the problem of a field that is missing, null or not text; None when it is usable."""
    if field not in record.fields:
        near = next((key for key in record.fields if key.strip().lower() == field.strip().lower()), None)
        hint = f"it has {near!r} (keys are case-sensitive)" if near else f"it has {_list_names(list(record.fields))}"
        return Fault("missing", f"the row lacks {field!r}, which {needed_by} needs; {hint}", field)
    value = record.fields[field]
    if value is None:
        return Fault("null", f"{field!r} is null; give text, or remove the row", field)
    if isinstance(value, NonTextCell):
        return Fault("type", f"{field!r} is a column of type {value.name}; expected strings", field)
    if text_of(value) is None:
        return Fault("nested", f"{field!r} is {describe(value)}; expected a string, number or boolean", field)
    return None


def _list_names(names: list[str]) -> str:
    shown = ", ".join(repr(name[:40]) for name in names[:6])
    return "no field" if not names else shown + (f" and {len(names) - 6} more" if len(names) > 6 else "")


class TemplateFormat:
    """Instruction and Autopilot rows. `exact`: the rows have exactly the template's fields."""

    def __init__(self, template: Template, exact: bool = False) -> None:
        self.template = template
        self.exact = exact
        self._fields = template.fields
        self._needed_by = "Autopilot" if exact else "the template"

    def faults(self, record: Record) -> Iterator[Fault]:
        for field in self._fields:
            fault = fault_of(record, field, self._needed_by)
            if fault:
                yield fault
        if self.exact and record.fields.keys() - self._fields:
            extra = ", ".join(sorted(map(repr, record.fields.keys() - self._fields)))
            yield Fault("columns", f"unexpected column {extra}; expected exactly 'input' and 'output'")

    def example(self, record: Record) -> Example:
        return self.template.render(record.fields, record.source)

    def values(self, record: Record) -> list[str]:
        return [record.fields[field] for field in self._fields]

    def is_empty(self, record: Record, example: Example) -> bool:
        return not example.completion.strip()


class ChatFormat:
    """Conversations, rendered by the tokenizer's chat template; `turns` (chat.TURNS) says which carry loss."""

    def __init__(self, chat: ChatTemplate, turns: str = ASSISTANT) -> None:
        self.chat = chat
        self.turns = turns

    def faults(self, record: Record) -> Iterator[Fault]:
        try:
            read_messages(record.fields)
        except ChatError as error:
            yield Fault(_NUMBER.sub("", str(error))[:24], str(error))

    def example(self, record: Record) -> Example:
        return self.chat.example(read_messages(record.fields), record.source, self.turns)

    def values(self, record: Record) -> list[str]:
        return [text for message in read_messages(record.fields) for text in (message["role"], message["content"])]

    def is_empty(self, record: Record, example: Example) -> bool:
        replies = [message["content"] for message in read_messages(record.fields) if message["role"] == "assistant"]
        return not any(text.strip() for text in (replies[-1:] if self.turns == LAST else replies))


class TextFormat:
    """Domain text in one column."""

    def __init__(self, column: str) -> None:
        self.column = column

    def faults(self, record: Record) -> Iterator[Fault]:
        fault = fault_of(record, self.column, "domain adaptation")
        if fault:
            yield fault

    def example(self, record: Record) -> Example:
        return Example(record.source, (Piece(self.values(record)[0], True),))

    def values(self, record: Record) -> list[str]:
        return [record.fields[self.column]]

    def is_empty(self, record: Record, example: Example) -> bool:
        return not example.completion.strip()


def text_column(fields: dict[str, Any]) -> tuple[str, str]:
    """Return the column of domain text (`Text`, `text`, else the first), and a warning when it is the first."""
    for name in ("Text", "text"):
        if name in fields:
            return name, ""
    first = next(iter(fields), "text")
    return first, f"no column 'Text' or 'text': using the first one, {first!r}"
