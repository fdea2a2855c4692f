"""Row formats: how a record of each kind is validated and rendered as an Example.

    faults(record)    problems of the record
    example(record)   the rendered record: the text the model sees
    values(record)    the record's own text without the template, for finding duplicates

Each handles one record at a time, without files, splits or tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from luthier.data.chat import ALL, ASSISTANT, ChatTemplate, turns_with_loss
from luthier.data.conversation import KEYS as CONVERSATION_KEYS
from luthier.data.conversation import REASONING, ChatError, Conversation, Message, read_conversation
from luthier.data.example import Example, Piece
from luthier.data.records import Record, describe
from luthier.data.rows import DropReason
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

    def drop_reason(self, record: Record, example: Example) -> DropReason:
        """Return why nothing but the end of text could be learned from the record; NONE if something can."""

    def unread(self, record: Record) -> Iterable[str]:
        """Return the record's keys that are not read."""


def text_of(value: Any) -> str | None:
    """Return a field's text: a string, or a number or boolean as the file writes it; None for anything else."""
    return str(value) if isinstance(value, str) else None


def fault_of(record: Record, field: str, needed_by: str) -> Fault | None:
    """Return the problem of a field that is missing, null or not text; None when it is usable."""
    if field not in record.fields:
        near = next((key for key in record.fields if key.strip().lower() == field.strip().lower()), None)
        hint = f"it has {near!r} (keys are case-sensitive)" if near else f"it has {_list_names(list(record.fields))}"
        if any(isinstance(record.fields.get(key), list) for key in CONVERSATION_KEYS):
            hint += ": a conversation; give --kind chat (chat rows take no template.json)"
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
            unnamed = [
                name for name in record.fields.keys() - self._fields if name == "" or name.startswith("Unnamed: ")
            ]
            why = " (a pandas index: write the table with index=False)" if unnamed else ""
            yield Fault("columns", f"unexpected column {extra}{why}; expected exactly 'input' and 'output'")

    def example(self, record: Record) -> Example:
        return self.template.render(record.fields, record.source)

    def values(self, record: Record) -> list[str]:
        return [record.fields[field] for field in self._fields]

    def drop_reason(self, record: Record, example: Example) -> DropReason:
        return _empty_completion(example)

    def unread(self, record: Record) -> Iterable[str]:
        return _unused(record, self._fields)


class ChatFormat:
    """Conversations, rendered by the tokenizer's chat template; `turns` (chat.TURNS) says which carry loss.

    `trains_all_tokens`: so does everything else, which rows with masked turns exclude.
    """

    def __init__(self, chat: ChatTemplate, turns: str = ASSISTANT, trains_all_tokens: bool = False) -> None:
        self.chat = chat
        self.turns = turns
        self.trains_all_tokens = trains_all_tokens
        self._latest: tuple[dict[str, Any], Conversation] | None = None

    def _read(self, record: Record) -> Conversation:
        """Read the record's conversation, once for the questions about it that follow each other."""
        if self._latest is None or self._latest[0] is not record.fields:
            self._latest = record.fields, read_conversation(record.fields)
        return self._latest[1]

    def faults(self, record: Record) -> Iterator[Fault]:
        try:
            conversation = self._read(record)
        except ChatError as error:
            yield Fault(_NUMBER.sub("", str(error))[:24], str(error))
        else:
            if conversation.has_masks and self.trains_all_tokens:
                message = "the row masks turns, but completion_only_loss=False trains every token; set it to True"
                yield Fault("masked", message)

    def example(self, record: Record) -> Example:
        return self.chat.example(self._read(record), record.source, self.turns)

    def values(self, record: Record) -> list[str]:
        conversation = self._read(record)
        values = [text for message in conversation.messages for text in _texts(message)]
        return values + ([json.dumps(conversation.tools, ensure_ascii=False)] if conversation.tools else [])

    def drop_reason(self, record: Record, example: Example) -> DropReason:
        conversation = self._read(record)
        trained = turns_with_loss(conversation, self.turns)
        if not trained:
            return DropReason.MASKED
        texts = [_texts(conversation.messages[index], not self.chat.drops_reasoning)[1:] for index in trained]
        is_empty = not any(text.strip() for turn in texts for text in turn)
        return DropReason.EMPTY_TURN if is_empty else DropReason.NONE

    def unread(self, record: Record) -> Iterable[str]:
        conversation = self._read(record)
        roles = {"assistant", "user"} if self.turns == ALL else {"assistant"}
        stated = ((conversation.messages[index]["role"], key) for index, key in conversation.unmasked.items())
        return self.chat.unread_keys(conversation) | {
            f"messages[].{key} of role {role}" for role, key in stated if role not in roles
        }


def _texts(message: Message, with_reasoning: bool = True) -> list[str]:
    """Return a message's role, content, and what else of it is trained."""
    calls = message.get("tool_calls")
    reasoning = [message[REASONING]] if REASONING in message and with_reasoning else []
    return [
        message["role"],
        message["content"],
        *reasoning,
        *([json.dumps(calls, ensure_ascii=False)] if calls else []),
    ]


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

    def drop_reason(self, record: Record, example: Example) -> DropReason:
        return _empty_completion(example)

    def unread(self, record: Record) -> Iterable[str]:
        return _unused(record, (self.column,))


def _unused(record: Record, fields: Collection[str]) -> Iterator[str]:
    return (name for name, value in record.fields.items() if name not in fields and value is not None)


def _empty_completion(example: Example) -> DropReason:
    return DropReason.NONE if example.completion.strip() else DropReason.EMPTY


def text_column(fields: dict[str, Any]) -> tuple[str, str]:
    """Return the column of domain text (`Text`, `text`, else the first), and a warning when it is the first."""
    for name in ("Text", "text"):
        if name in fields:
            return name, ""
    first = next(iter(fields), "text")
    return first, f"no column 'Text' or 'text': using the first one, {first!r}"
