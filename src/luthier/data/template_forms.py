"""The forms in which a chat template takes tools, tool calls and reasoning, found by rendering probes.

    arguments     {"function": {"name": "f", "arguments": {"x": 1}}}, or the object as text
    content       "" beside a call, or None
    reasoning     in reasoning_content, thinking or reasoning; else, where that is set, inside the content between the
                  markers that the template itself uses:  <think>\\n...\\n</think>\\n\\n4

Names of models play no part.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, cached_property
from typing import Any

from luthier.data.conversation import REASONING, ChatError, Conversation, Message

REFUSE, INLINE, DROP = REASONING_MODES = ("refuse", "inline", "drop")
Render = Callable[[Sequence[Message], Sequence[Any] | None, bool], str]  # messages, tools, whether an answer follows

_REASONING_KEYS = (REASONING, "thinking", "reasoning")
_THOUGHT_MARKERS = (  # opening, closing, and what separates both from the text
    ("<think>", "</think>", "\n"), ("<thinking>", "</thinking>", "\n"), ("[THINK]", "[/THINK]", ""),
    ("<|START_THINKING|>", "<|END_THINKING|>", ""),
)  # fmt: skip
_USER: Message = {"role": "user", "content": "2"}
_NAME, _KEY, _VALUE, _WORD = "qxnameprobe", "qxkeyprobe", "qxvalueprobe", "qxwordprobe"
_IDS = ("qxprobe01", f"functions.{_NAME}:0")  # some templates require nine letters, others write the id for the name
_CALL = {"id": _IDS[0], "type": "function", "function": {"name": _NAME, "arguments": {_KEY: _VALUE}}}


class TemplateForms:
    """The forms that one chat template takes; `source`: its text."""

    def __init__(self, source: str, render: Render) -> None:
        self._source = source
        self._render = render
        self.reads_key = cache(self._reads_key)

    def adapt(self, messages: Sequence[Message], mode: str) -> list[Message]:
        """Return the messages as the template takes them; `mode`: of REASONING_MODES. Raises ChatError."""
        return [self._adapt(message, number, mode) for number, message in enumerate(messages, 1)]

    def _adapt(self, message: Message, number: int, mode: str) -> Message:
        adapted = {
            key: value
            for key, value in message.items()
            if key not in (REASONING, "tool_calls") and self.reads_key(message["role"], key)
        }
        if REASONING in message:
            adapted = self._with_reasoning(message, adapted, number, mode)
        if "tool_calls" in message:
            if self._call_form is None:
                raise ChatError(f"message {number} calls a tool, which the model's chat template does not write")
            as_text, content = self._call_form
            calls = [_with_arguments(call, as_text) for call in message["tool_calls"]]
            adapted |= {"tool_calls": calls, "content": adapted["content"] or content}
        return adapted

    def _with_reasoning(self, message: Message, adapted: Message, number: int, mode: str) -> Message:
        if self._reasoning_key:
            return adapted | {self._reasoning_key: message[REASONING]}
        if mode == DROP:
            return adapted
        markers = self._thought_markers
        if mode != INLINE or markers is None:
            inline = f"reasoning=inline writes it between {markers[0]} and {markers[1]}, " if markers else ""
            raise ChatError(
                f"message {number} has {REASONING!r}, which the model's chat template does not read; {inline}"
                "reasoning=drop leaves it out"
            )
        opening, closing, gap = markers
        thought = message[REASONING].strip("\n")
        return adapted | {"content": f"{opening}{gap}{thought}{gap}{closing}{gap}{gap}{adapted['content']}"}

    @cached_property
    def _thought_markers(self) -> tuple[str, str, str] | None:
        return next((each for each in _THOUGHT_MARKERS if each[0] in self._source and each[1] in self._source), None)

    def drops_reasoning(self, mode: str) -> bool:
        """Whether reasoning is left out."""
        return mode == DROP and self._reasoning_key is None

    @cached_property
    def _reasoning_key(self) -> str | None:
        """The first key of reasoning that the template writes."""
        for key in _REASONING_KEYS:
            if _WORD in self._try([_USER, {"role": "assistant", "content": "4", key: _WORD}]):
                return key
        return None

    @cached_property
    def _call_form(self) -> tuple[bool, str | None] | None:
        """Whether arguments are text, and the content beside a call; None if the template writes no calls."""
        for as_text, content, number in itertools.product((False, True), ("", None), _IDS):
            text = self._try([_USER, _calling(as_text, content, number)])
            parts = (f'"{_KEY}"', _NAME, _VALUE) if as_text else (_KEY, _NAME, _VALUE)
            misread = (f"'{_KEY}'", f'\\"{_KEY}', "None")  # Python's notation, text in text, content that is not there
            if all(part in text for part in parts) and not any(part in text for part in misread):
                return as_text, content
        return None

    def _reads_key(self, role: str, key: str) -> bool:
        """Whether a key of messages with this role is read: by the template, whose text depends on it then."""
        if key in ("role", "content") or (role == "tool" and key in ("name", "tool_call_id")):
            return True
        message: Message = {"role": role, "content": "4"}
        before: dict[str, list[Message]] = {
            "system": [], "user": [], "assistant": [_USER], "tool": [_USER, {"role": "assistant", "content": "4"}]
        }  # fmt: skip
        after = [_USER] if role == "system" else []
        plain, keyed = (self._try([*before[role], message | extra, *after]) for extra in ({}, {key: _WORD}))
        return plain != keyed

    def _try(self, messages: Sequence[Message], tools: Sequence[Any] | None = None, generation: bool = False) -> str:
        """Render a probe; "" where the template refuses it."""
        try:
            return self._render(messages, tools, generation)
        except ChatError:
            return ""

    def check_written(
        self, conversation: Conversation, text: str, turns: Mapping[int, str], mode: str, generation: bool = False
    ) -> None:
        """Raise ChatError if the rendered `text` lacks the system message, tools, calls or results, or the reasoning of
        one of the `turns`: the text of turns that carry loss, by message.

        Each is looked for twice: its words in the text, which the template may shorten, and a label in its place in
        another rendering, as the words may occur elsewhere.
        """
        first = conversation.messages[0] if conversation.messages else {"role": ""}
        if first["role"] == "system" and not _contains(text, first["content"]):
            raise ChatError(
                "the model's chat template does not write the system message; put its text into the first user message"
            )
        labels = _Labels()
        tools = [labels.tool(tool) for tool in conversation.tools or ()] or None
        messages = []
        for index, message in enumerate(conversation.messages):
            has_reasoning = index in turns and not self.drops_reasoning(mode)
            messages.append(labels.message(message, f"of message {index + 1}", has_reasoning))
        if not labels.parts:
            return
        labelled = self._try(self.adapt(messages, mode), tools, generation)
        for label, part, words in labels.parts:
            if not _contains(text, words) or (labelled and label not in labelled):
                raise ChatError(f"the model's chat template does not write {part}")
        for index, message in enumerate(conversation.messages):
            for call in message.get("tool_calls", ()):
                if not all(_contains(turns.get(index, text), leaf) for leaf in _argument_leaves(call)):
                    raise ChatError(f"the model's chat template does not write the tool call of message {index + 1}")

    def end_of_calls(self, message: Message, text: str, start: int) -> int:
        """Return a place in the text after `start` that is inside a message's last call, at or before its last word."""
        ends, place = [start], start
        for call in message["tool_calls"]:
            place = max(text.find(call["function"]["name"], place), place)
            # Short words may occur again in what follows, so the first place counts.
            ends += [text.find(leaf.strip(), start) + len(leaf.strip()) for leaf in _argument_leaves(call)]
        words = message["content"].strip()
        return max(*ends, place, text.find(words, start) + len(words))


class _Labels:
    """Puts labels in the place of what a template must write. `parts`: label, what it stands for, and its words."""

    def __init__(self) -> None:
        self.parts: list[tuple[str, str, str]] = []

    def tool(self, tool: Mapping[str, Any]) -> dict[str, Any]:
        name = tool["function"]["name"]
        return {
            **tool,
            "function": tool["function"] | {"name": self._label(f"the row's tools, such as {name!r}", name)},
        }

    def message(self, message: Message, where: str, has_reasoning: bool) -> Message:
        labelled = dict(message)
        if calls := message.get("tool_calls"):
            names = [self._label(f"the tool call {where}", call["function"]["name"]) for call in calls]
            pairs = zip(calls, names, strict=True)
            labelled["tool_calls"] = [{**call, "function": call["function"] | {"name": name}} for call, name in pairs]
        if message["content"].strip() and (calls or message["role"] == "tool"):
            part = "the text beside the tool call" if calls else "the tool's result"
            labelled["content"] = self._label(f"{part} {where}", message["content"])
        if has_reasoning and REASONING in message:
            labelled[REASONING] = self._label(f"{REASONING!r} {where}", message[REASONING])
        return labelled

    def _label(self, part: str, words: str) -> str:
        label = f"qx{len(self.parts)}label"
        self.parts.append((label, part, words))
        return label


def _calling(as_text: bool, content: str | None, number: str = _IDS[0]) -> Message:
    call = _with_arguments(_CALL | {"id": number}, as_text)
    return {"role": "assistant", "content": content, "tool_calls": [call]}


def _argument_leaves(call: Mapping[str, Any]) -> Iterator[str]:
    """Yield the texts in a call's arguments."""
    arguments = call["function"]["arguments"]
    return _leaves(json.loads(arguments) if isinstance(arguments, str) else arguments)


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from value
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _leaves(item)
    elif isinstance(value, str):
        yield value


def _contains(text: str, words: str) -> bool:
    """Whether the text contains the words, as they are or in a JSON string."""
    words = words.strip()
    return words in text or any(json.dumps(words, ensure_ascii=is_ascii)[1:-1] in text for is_ascii in (False, True))


def _with_arguments(call: Mapping[str, Any], as_text: bool) -> dict[str, Any]:
    function, arguments = call["function"], call["function"]["arguments"]
    if as_text and not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    elif not as_text and isinstance(arguments, str):
        arguments = json.loads(arguments)
    return {**call, "function": function | {"arguments": arguments}}
