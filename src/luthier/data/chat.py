"""Conversations: messages to an Example by the tokenizer's own chat template.

    <|im_start|>user\n2 + 2?<|im_end|>\n<|im_start|>assistant\n4<|im_end|>\n
    --------------------- prompt ---------------------------|-- trained --|

A trained turn carries loss up to and including its end-of-turn marker; TURNS lists which turns can be trained.
Templates are rendered as transformers does (sandboxed Jinja, same options and globals). This module handles text and
marker strings, no token ids.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from luthier.data.example import Example, Piece, Span

KEYS = ("dialog", "messages", "conversations")
ASSISTANT, LAST, ALL = TURNS = ("assistant", "last", "all")  # assistant turns, only the last one, also the user's
ROLES = ("system", "user", "assistant")
_SHAREGPT_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
_VISIBLE = re.compile(r"\S")
Message = dict[str, str]


class ChatError(ValueError):
    """A conversation or chat template that cannot be trained on; the message is one line without the row's name."""


def read_messages(fields: Mapping[str, Any]) -> list[Message]:
    """Read a row's conversation: one of the keys dialog, messages, conversations, with {role, content} messages.

    ShareGPT's {from, value} with human and gpt is accepted too. Expects an optional system message, then user and
    assistant messages in turns, ending with the assistant. Raises ChatError.
    """
    present = [key for key in KEYS if key in fields]
    if len(present) != 1:
        present_keys = "has " + " and ".join(map(repr, present)) if present else "lacks all of them"
        near = [key for key in fields if key.lower() in KEYS and key not in KEYS]
        hint = f"; it has {near[0]!r}: keys are case-sensitive" if near else ""
        raise ChatError(f"expected one of the keys {', '.join(KEYS)}; the row {present_keys}{hint}")
    items = fields[present[0]]
    if not isinstance(items, list) or not items:
        raise ChatError(f"{present[0]!r} must be a list of messages, each with 'role' and 'content'")
    messages = [_read_message(item, number) for number, item in enumerate(items, 1)]
    _check_turns([message["role"] for message in messages])
    return messages


def _read_message(item: Any, number: int) -> Message:
    if not isinstance(item, dict):
        raise ChatError(f"message {number} must be an object with 'role' and 'content'")
    if "role" not in item and "from" in item:
        role, content = _SHAREGPT_ROLES.get(str(item["from"]), item["from"]), item.get("value")
        name = "value"
    else:
        role, content = item.get("role"), item.get("content")
        name = "content"
    if role not in ROLES:
        raise ChatError(f"message {number} has the role {role!r}; expected {', '.join(ROLES)}")
    if type(content) is not str:
        raise ChatError(f"message {number}: {name!r} must be a string")
    return {"role": str(role), "content": content}


def _check_turns(roles: list[str]) -> None:
    turns = roles[1:] if roles[0] == "system" else roles
    for index, role in enumerate(turns):
        expected = ("user", "assistant")[index % 2]
        if role != expected:
            number = index + 1 + len(roles) - len(turns)
            raise ChatError(
                f"message {number} is the {role}'s where the {expected}'s is due; after an optional system "
                "message, user and assistant take turns"
            )
    if not turns or turns[-1] != "assistant":
        raise ChatError("the conversation does not end with the assistant, so its last message has no answer to learn")


class ChatTemplate:
    """A tokenizer's chat template. `names`: special tokens by name (bos_token, ...); `controls`: all special tokens.

    `date`: the day that the template's function strftime_now writes, at midnight; None if it does not call it.
    """

    def __init__(
        self, source: str, names: Mapping[str, str], controls: Sequence[str], date: datetime.date | None = None
    ) -> None:
        self.source = source
        self.date = (date or datetime.date.today()) if "strftime_now" in source else None
        self._names = dict(names)
        self._controls = marker_pattern(controls)
        self._compiled = _compile(source, self.date or datetime.date.today())

    def render(self, messages: Sequence[Message], generation: bool = False) -> str:
        """Render the conversation; `generation`: append the opening of an assistant turn."""
        try:
            return self._compiled.render(
                messages=[dict(message) for message in messages],
                tools=None,
                documents=None,
                add_generation_prompt=generation,
                **self._names,
            )
        except jinja2.TemplateError as error:
            raise ChatError(f"the model's chat template refuses this conversation: {error.message}") from None
        except (TypeError, ValueError, KeyError, AttributeError, IndexError, ZeroDivisionError) as error:
            raise ChatError(f"the model's chat template fails on this conversation: {error}") from None

    def example(self, messages: Sequence[Message], source: str = "", turns: str = ASSISTANT) -> Example:
        """Render a whole conversation. The assistant turns that `turns` selects carry loss; ALL also marks the user's
        words in the other pieces (`Piece.user_spans`).
        """
        text = self.render(messages)
        markers = self._markers(messages, text, generation=False)
        user_spans = self._user_spans(messages, text, markers) if turns == ALL else []
        answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        pieces: list[Piece] = []
        done = 0
        for index in answers[-1:] if turns == LAST else answers:
            start, end = self._turn_span(messages, index, text, markers)
            pieces += [_piece(text, done, start, False, markers, user_spans), _piece(text, start, end, True, markers)]
            done = end
        pieces += self._ending(text, done, markers)
        return Example(source, tuple(piece for piece in pieces if piece.text), add_special_tokens=False)

    def _turn_span(self, messages: Sequence[Message], index: int, text: str, markers: Sequence[Span]) -> Span:
        """Return the span of an assistant turn in `text`, with its end-of-turn marker."""
        opened = self.render(messages[:index], generation=True)
        closed = self.render(messages[: index + 1])
        if not text.startswith(opened) or not (text.startswith(closed) or index + 1 == len(messages)):
            advice = "this template cannot be trained on"
            if index + 1 < len(messages) and text.startswith(self.render(messages[:-1], generation=True)):
                advice = "train_on_turns=last trains the last turn alone, whose prompts are the same"
            raise ChatError(
                "the model's chat template rewrites earlier turns when later ones follow, so its training "
                f"and serving prompts differ; {advice}"
            )
        start, limit = len(opened), len(closed)
        return start, next((end for begin, end in markers if begin >= start and end <= limit), limit)

    def _user_spans(self, messages: Sequence[Message], text: str, markers: Sequence[Span]) -> list[Span]:
        """Return the spans of the user's words in `text`, from the first to the last visible character of a message,
        including the next marker if it is the one that closes an assistant turn.

        To find them, each message is rendered with its visible characters masked.
        """
        closing = self.end_of_turn()
        mask = next(character for character in map(chr, range(0xE001, 0xF900)) if character not in text)
        spans = []
        for index, message in enumerate(messages):
            words = message["content"].strip()
            if message["role"] != "user" or not words:
                continue
            masked = [*messages[:index], message | {"content": _VISIBLE.sub(mask, message["content"])}]
            hidden = self.render([*masked, *messages[index + 1 :]])
            start, end = hidden.find(mask), hidden.rfind(mask) + 1
            if len(hidden) != len(text) or end - start != len(words):
                raise ChatError(
                    "the model's chat template changes what the user says, so it cannot be told from the "
                    "template's own text; train_on_turns=assistant needs not tell it"
                )
            begin, limit = next((marker for marker in markers if marker[0] >= end), (end, end))
            closed = text[begin:limit] == closing and not text[end:begin].strip()
            spans.append((start, limit if closed else end))
        return spans

    def _ending(self, text: str, done: int, markers: list[Span]) -> list[Piece]:
        """Return the untrained text after the last trained turn; instead a trained EOS if no marker closes it."""
        closed = any(end == done for _, end in markers)
        eos = self._names.get("eos_token", "")
        if closed or not eos:
            return [_piece(text, done, len(text), False, markers)]
        return [Piece(eos, True, ((0, len(eos)),))]

    def render_prompt(self, messages: Sequence[Message], source: str = "") -> Example:
        """Render the prompt for the next assistant turn, as serving does."""
        text = self.render(messages, generation=True)
        return Example(
            source, (_piece(text, 0, len(text), False, self._markers(messages, text, True)),), add_special_tokens=False
        )

    def end_of_turn(self) -> str:
        """Return the marker that closes an assistant turn; "" if the template has none."""
        probe = [{"role": "user", "content": "2"}, {"role": "assistant", "content": "4"}]
        try:
            opened, closed = self.render(probe[:1], generation=True), self.render(probe)
        except ChatError:
            return ""
        match = self._controls.search(closed, min(len(opened), len(closed)))
        return match.group() if match else ""

    def _markers(self, messages: Sequence[Message], text: str, generation: bool) -> list[Span]:
        """Return the spans of the template's own markers, not of marker strings in the messages, which are masked."""
        if any(self._controls.search(message["content"]) for message in messages):
            masked = [message | {"content": self._controls.sub(_masked, message["content"])} for message in messages]
            hidden = self.render(masked, generation)
            if len(hidden) != len(text):
                raise ChatError(
                    "the model's chat template changes special-token strings inside messages, so they "
                    "cannot be told from its own markers"
                )
            text = hidden
        return [match.span() for match in self._controls.finditer(text)]


def marker_pattern(strings: Sequence[str]) -> re.Pattern[str]:
    """Return a pattern that matches any of `strings`, the longest first."""
    if not strings:
        return re.compile(r"(?!)")
    return re.compile("|".join(re.escape(text) for text in sorted(strings, key=len, reverse=True)))


def _masked(match: re.Match[str]) -> str:
    return "\ue000" * len(match.group())


def _piece(
    text: str, start: int, end: int, trained: bool, markers: Sequence[Span], user_spans: Sequence[Span] = ()
) -> Piece:
    control_spans, spoken_spans = (
        tuple((first - start, last - start) for first, last in spans if start <= first and last <= end)
        for spans in (markers, user_spans)
    )
    return Piece(text[start:end], trained, control_spans, spoken_spans)


class _Generation(jinja2.ext.Extension):
    """Accepts `{% generation %}`, which marks assistant text in some templates and does not change the rendering."""

    tags = {"generation"}  # noqa: RUF012 (jinja2's own interface)

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _compile(source: str, date: datetime.date) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = date.strftime
    try:
        return environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise ChatError(f"the model's chat template is not valid Jinja: {error.message}") from None


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
