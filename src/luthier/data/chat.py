"""Renders conversations as an Example by the tokenizer's own chat template.

    <|im_start|>user\n2 + 2?<|im_end|>\n<|im_start|>assistant\n4<|im_end|>\n
    --------------------- prompt ---------------------------|-- trained --|

A trained turn carries loss up to and including its end-of-turn marker; TURNS lists which turns can be trained.
Templates are rendered as transformers does (sandboxed Jinja, same options and globals). This module handles text and
marker strings, no token ids.
"""

from __future__ import annotations

import copy
import datetime
import itertools
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from luthier.data.conversation import REASONING, ROLES, ChatError, Conversation, Message
from luthier.data.example import Example, Piece, Span
from luthier.data.template_forms import REFUSE, TemplateForms

ASSISTANT, LAST, ALL = TURNS = ("assistant", "last", "all")  # assistant turns, only the last one, also the user's
_PLAIN = ("role", "content")
_VISIBLE = re.compile(r"\S")
Dialog = Conversation | Sequence[Message]
_PROBE: list[Message] = [{"role": "user", "content": "2"}, {"role": "assistant", "content": "4"}]


class ChatTemplate:
    """A tokenizer's chat template. `names`: special tokens by name (bos_token, ...); `controls`: all special tokens.

    `date`: the day that the template's function strftime_now writes, at midnight; None means today. The attribute is
    None for a template that does not call it.
    """

    def __init__(
        self, source: str, names: Mapping[str, str], controls: Sequence[str], date: datetime.date | None = None
    ) -> None:
        self.source = source
        self.date = (date or datetime.date.today()) if "strftime_now" in source else None
        self._names = dict(names)
        self._controls = marker_pattern(controls)
        self._compiled = _compile(source, self.date or datetime.date.today())
        self.reasoning = REFUSE  # what is done with reasoning that the template does not read
        self._forms = TemplateForms(source, self._render_adapted)

    def with_reasoning(self, mode: str) -> ChatTemplate:
        """Return this template with what is done with reasoning that it does not read: of REASONING_MODES."""
        if mode == self.reasoning:
            return self
        changed = copy.copy(self)
        changed.reasoning = mode
        return changed

    @property
    def drops_reasoning(self) -> bool:
        """Whether reasoning is left out of the text."""
        return self._forms.drops_reasoning(self.reasoning)

    def unread_keys(self, conversation: Conversation) -> set[str]:
        """Return the keys of the row and of its messages that nothing reads."""
        keys = {
            f"messages[].{key}"
            for message in conversation.messages
            for key in message
            if key not in (REASONING, "tool_calls") and not self._forms.reads_key(message["role"], key)
        }
        return keys | conversation.unread

    def render(self, dialog: Dialog, generation: bool = False) -> str:
        """Render the conversation; `generation`: append the opening of an assistant turn."""
        conversation = conversation_of(dialog)
        adapted = self._forms.adapt(conversation.messages, self.reasoning)
        return self._render_adapted(adapted, conversation.tools, generation)

    def _render_adapted(self, messages: Sequence[Message], tools: Sequence[Any] | None, generation: bool) -> str:
        try:
            return self._compiled.render(
                messages=[dict(message) for message in messages],
                tools=None if tools is None else list(tools),
                documents=None,
                add_generation_prompt=generation,
                **self._names,
            )
        except jinja2.TemplateError as error:
            raise ChatError(f"the model's chat template refuses this conversation: {error.message}") from None
        except (TypeError, ValueError, KeyError, AttributeError, IndexError, ZeroDivisionError) as error:
            raise ChatError(f"the model's chat template fails on this conversation: {error}") from None

    def example(self, dialog: Dialog, source: str = "", turns: str = ASSISTANT) -> Example:
        """Render a whole conversation. The assistant turns that `turns` selects carry loss, except masked ones; ALL
        also marks the user's words in the other pieces (`Piece.user_spans`).
        """
        conversation = conversation_of(dialog)
        rendered = self._render_spans(conversation)
        trained = turns_with_loss(conversation, turns)
        turn_spans = self._turn_spans(conversation, rendered, trained)
        written = {index: rendered.text[start:end] for index, (start, end) in turn_spans.items() if index in trained}
        self._forms.check_written(conversation, rendered.text, written, self.reasoning)
        user_spans = self._user_spans(conversation, rendered) if turns == ALL else []
        pieces: list[Piece] = []
        done = 0
        for index, (start, end) in turn_spans.items():
            pieces += [rendered.piece(done, start, user_spans=user_spans), rendered.piece(start, end, index in trained)]
            done = end
        is_open = len(conversation.messages) - 1 in turn_spans
        pieces += self._ending(rendered, done, is_open, len(conversation.messages) - 1 in trained)
        masked = len(turns_with_loss(conversation, turns, masked=True))
        return Example(source, tuple(piece for piece in pieces if piece.text), False, masked)

    def render_prompt(self, dialog: Dialog, source: str = "") -> Example:
        """Render the prompt for the next assistant turn, as serving does.

        It is cut into the same pieces as a whole conversation, so that its tokens are those of training.
        """
        conversation = conversation_of(dialog)
        rendered = self._render_spans(conversation, generation=True)
        self._forms.check_written(conversation, rendered.text, {}, self.reasoning, generation=True)
        cuts = [0, *itertools.chain(*self._turn_spans(conversation, rendered).values()), len(rendered.text)]
        pieces = [rendered.piece(start, end) for start, end in itertools.pairwise(cuts) if start < end]
        return Example(source, tuple(pieces), add_special_tokens=False)

    def _turn_spans(
        self, conversation: Conversation, rendered: _Rendered, required: Collection[int] = ()
    ) -> dict[int, Span]:
        """Return the spans of the assistant turns that the template writes as they are generated, by message.

        Raise the ChatError of a `required` one that it writes otherwise.
        """
        spans = {}
        for index, message in enumerate(conversation.messages):
            if message["role"] == "assistant":
                try:
                    spans[index] = self._turn_span(conversation, index, rendered)
                except ChatError:
                    if index in required:
                        raise
        return spans

    def end_of_turn(self) -> str:
        """Return the first marker that closes an assistant turn; "" if the template has none."""
        return next(iter(self._closing_markers), "")

    @cached_property
    def _closing_markers(self) -> list[str]:
        """The markers after an answer that ends the conversation, in order."""
        try:
            rendered = self._render_spans(conversation_of(_PROBE))
        except ChatError:
            return []
        content = rendered.contents[1]
        return [] if content is None else rendered.markers_between(content[1], len(rendered.text))

    def _turn_span(self, conversation: Conversation, index: int, rendered: _Rendered) -> Span:
        """Return the span of an assistant turn: from its first token to its last closing marker.

        ChatError where the template writes the turn, or what precedes it, otherwise than when the answer is generated.
        """
        opened = self.render(conversation.first(index), generation=True)
        if not rendered.text.startswith(opened):
            self._refuse(conversation, index, rendered.text)
        start, content = len(opened), rendered.contents[index]
        if index + 1 == len(conversation.messages):
            written = start if content is None else content[1]
            return start, max((end for _, end in rendered.markers if end > written), default=len(rendered.text))
        closed, following = self.render(conversation.first(index + 1)), rendered.contents[index + 1]
        if conversation.messages[index].get("tool_calls"):
            common = closed[: _common_length(closed, rendered.text)]
            written = self._forms.end_of_calls(conversation.messages[index], common, start)
            end = self._closing_of_call(rendered, written, following, closed)
            if end < written:
                self._refuse(conversation, index, rendered.text)
        elif content is None or following is None:
            end = written = self._first_closing(rendered, start, len(closed))
        else:
            end, written = self._closing_between(rendered, content[1], following[0], closed), content[1]
        if closed[:written] != rendered.text[:written]:
            self._refuse(conversation, index, rendered.text)
        return start, end

    def _closing_of_call(self, rendered: _Rendered, written: int, following: Span | None, closed: str) -> int:
        """Return where a turn ends whose calls end at `written`; -1 where that cannot be told."""
        same = _common_length(closed, rendered.text)
        end = max((last for first, last in rendered.markers if first >= written and last <= same), default=-1)
        if same == len(closed):
            return same if end < 0 else end
        between = self._closing_between(rendered, written, following[0], closed) if following else -1
        return max(end, between if between > written else -1)

    def _closing_between(self, rendered: _Rendered, start: int, end: int, closed: str) -> int:
        """Return where a turn ends whose answer ends at `start`, before the next message's words at `end`."""
        between = [marker for marker in rendered.markers if start <= marker[0] and marker[1] <= end]
        names = [rendered.text[first:last] for first, last in between]
        count = _common_length(names, self._closing_markers)
        if not count:  # a marker that the template writes only between turns: those before the next turn's opening
            text, opening = rendered.text[start:end], self._opening_of_user
            same = _common_length(text[::-1], opening[::-1])
            count = sum(1 for _, last in between if last <= end - same)
        if not count and self._opening_marker in names:
            count = names.index(self._opening_marker)
        if count:
            return between[count - 1][1]
        return len(closed) if rendered.text.startswith(closed) else start

    def _first_closing(self, rendered: _Rendered, start: int, limit: int) -> int:
        """Return the end of the first closing marker after `start`, for a turn whose words are not known."""
        closing = self.end_of_turn()
        return next(
            (last for first, last in rendered.markers if first >= start and rendered.text[first:last] == closing), limit
        )

    @cached_property
    def _opening_of_user(self) -> str:
        """What the template writes before the first user's words."""
        rendered = self._render_spans(conversation_of(_PROBE[:1]))
        content = rendered.contents[0]
        return "" if content is None else rendered.text[: content[0]]

    @cached_property
    def _opening_marker(self) -> str:
        """The first marker with which the template opens an answer; "" if there is none."""
        without, opened = self.render(_PROBE[:1]), self.render(_PROBE[:1], generation=True)
        match = self._controls.search(opened, _common_length(without, opened))
        return match.group() if match else ""

    def _refuse(self, conversation: Conversation, index: int, text: str) -> NoReturn:
        """Raise the ChatError of a turn whose prompt in training would differ from the one in serving."""
        opened, whole = self.render(_PROBE[:1], generation=True), self._render_spans(conversation_of(_PROBE))
        same, question = _common_length(opened, whole.text), whole.contents[0]
        if same < len(opened) and question is not None and question[1] <= same:
            opening = opened[same:]
            raise ChatError(
                f"the model's chat template opens a generated answer with {opening!r} (as reasoning models do) but "
                "writes the answers of a conversation without it, so its training and serving prompts differ; use a "
                "base model whose template does not, or prompt/completion rows"
            )
        advice = "this template cannot be trained on"
        last = len(conversation.messages) - 1
        if index < last and text.startswith(self.render(conversation.first(last), generation=True)):
            advice = "train_on_turns=last trains the last turn alone, whose prompts are the same"
        raise ChatError(
            "the model's chat template rewrites earlier turns when later ones follow, so its training "
            f"and serving prompts differ; {advice}"
        )

    def _user_spans(self, conversation: Conversation, rendered: _Rendered) -> list[Span]:
        """Return the spans of the user's words that are not masked, from the first to the last visible character of a
        message, including the next marker if it is the one that closes an assistant turn.
        """
        closing, spans = self.end_of_turn(), []
        for index, (message, content) in enumerate(zip(conversation.messages, rendered.contents, strict=True)):
            if message["role"] != "user" or not message["content"].strip() or index in conversation.masked:
                continue
            if content is None:
                raise ChatError(
                    "the model's chat template changes what the user says, so it cannot be told from the "
                    "template's own text; train_on_turns=assistant needs not tell it"
                )
            start, end = content
            begin, limit = next((marker for marker in rendered.markers if marker[0] >= end), (end, end))
            closed = rendered.text[begin:limit] == closing and not rendered.text[end:begin].strip()
            spans.append((start, limit if closed else end))
        return spans

    def _ending(self, rendered: _Rendered, done: int, is_open: bool, is_trained: bool) -> list[Piece]:
        """Return the untrained text after the last turn; instead an EOS if no marker closes it.

        `is_open`: the last turn ends at `done`; `is_trained`: it carries loss, and so does its EOS.
        """
        closed = any(end == done for _, end in rendered.markers)
        eos = self._names.get("eos_token", "")
        if closed or not eos or not is_open:
            return [rendered.piece(done, len(rendered.text))]
        return [Piece(eos, is_trained, ((0, len(eos)),))]

    def _render_spans(self, conversation: Conversation, generation: bool = False) -> _Rendered:
        """Render a conversation, and find the words of its messages by rendering it with their characters masked."""
        text = self.render(conversation, generation)
        messages = conversation.messages
        masks = dict(zip(ROLES, (mask for mask in map(chr, range(0xE001, 0xF900)) if mask not in text), strict=False))
        try:
            hidden = self.render(self._masked(conversation, masks), generation)
        except ChatError:  # a template may judge what a message says
            hidden = ""
        if len(hidden) != len(text):
            return _Rendered(text, self._markers(conversation, text, generation), [None] * len(messages))
        markers = [match.span() for match in self._controls.finditer(hidden)]
        return _Rendered(text, markers, list(_content_spans(messages, hidden, masks)))

    def _masked(self, conversation: Conversation, masks: Mapping[str, str]) -> Conversation:
        """Return the conversation with all marker strings masked, and the visible characters of contents too."""
        messages = []
        for it in conversation.messages:
            content = _VISIBLE.sub(masks[it["role"]], it["content"]) if masks else self._without_markers(it["content"])
            rest = {} if len(it) == 2 else self._without_markers({k: v for k, v in it.items() if k not in _PLAIN})
            messages.append({"role": it["role"], "content": content, **rest})
        return Conversation(messages=messages, tools=self._without_markers(conversation.tools))

    def _without_markers(self, value: Any) -> Any:
        """Return a JSON value with the marker strings in its texts masked."""
        if isinstance(value, str):
            return self._controls.sub(_masked, value)
        if isinstance(value, dict):
            return {self._without_markers(name): self._without_markers(item) for name, item in value.items()}
        return [self._without_markers(item) for item in value] if isinstance(value, list) else value

    def _markers(self, conversation: Conversation, text: str, generation: bool) -> list[Span]:
        """Return the spans of the template's own markers, not of marker strings in the messages, which are masked."""
        masked = self._masked(conversation, {})
        if masked.messages != conversation.messages or masked.tools != conversation.tools:
            hidden = self.render(masked, generation)
            if len(hidden) != len(text):
                raise ChatError(
                    "the model's chat template changes special-token strings inside messages, so they "
                    "cannot be told from its own markers"
                )
            text = hidden
        return [match.span() for match in self._controls.finditer(text)]


def conversation_of(dialog: Dialog) -> Conversation:
    """Return the conversation of a plain list of messages."""
    return dialog if isinstance(dialog, Conversation) else Conversation(messages=dialog)


def turns_with_loss(conversation: Conversation, turns: str, masked: bool = False) -> list[int]:
    """Return the assistant's messages that carry loss: those of `turns` without the masked ones.

    `masked`: return the masked ones instead.
    """
    answers = [index for index, message in enumerate(conversation.messages) if message["role"] == "assistant"]
    chosen = answers[-1:] if turns == LAST else answers
    return [index for index in chosen if (index in conversation.masked) is masked]


def marker_pattern(strings: Sequence[str]) -> re.Pattern[str]:
    """Return a pattern that matches any of `strings`, the longest first."""
    if not strings:
        return re.compile(r"(?!)")
    return re.compile("|".join(re.escape(text) for text in sorted(strings, key=len, reverse=True)))


def _masked(match: re.Match[str]) -> str:
    return "\ue000" * len(match.group())


def _common_length(one: Sequence[str], other: Sequence[str]) -> int:
    """Return the length of the common prefix."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(one), len(other)))


@dataclass(frozen=True, slots=True)
class _Rendered:
    """A rendered conversation: its text, the spans of the template's own markers and of each message's words.

    The words' span is None where a message has none, or where the template changes them.
    """

    text: str
    markers: Sequence[Span]
    contents: Sequence[Span | None]

    def markers_between(self, start: int, end: int) -> list[str]:
        return [self.text[first:last] for first, last in self.markers if start <= first and last <= end]

    def piece(self, start: int, end: int, trained: bool = False, user_spans: Sequence[Span] = ()) -> Piece:
        """Return the text from `start` to `end` as a piece, with the markers and user spans inside of it."""
        controls, spoken = (
            tuple((first - start, last - start) for first, last in spans if start <= first and last <= end)
            for spans in (self.markers, user_spans)
        )
        return Piece(self.text[start:end], trained, controls, spoken)


def _content_spans(messages: Sequence[Message], hidden: str, masks: Mapping[str, str]) -> Iterator[Span | None]:
    """Yield the span of each message's words in the masked text; a role's messages are in order there."""
    visible = {
        role: sum(len(_VISIBLE.findall(it["content"])) for it in messages if it["role"] == role) for role in masks
    }
    if any(hidden.count(mask) != visible[role] for role, mask in masks.items()):
        yield from [None] * len(messages)
        return
    done = dict.fromkeys(masks, 0)
    for message in messages:
        role, words = message["role"], message["content"].strip()
        start = hidden.find(masks[role], done[role])
        end = start + len(words)
        if not words or start < 0 or hidden[start:end] != _VISIBLE.sub(masks[role], words):
            yield None
        else:
            done[role] = end
            yield start, end


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
