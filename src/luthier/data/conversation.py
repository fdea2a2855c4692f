"""Conversations as files and requests write them, read into one form for the model's chat template.

    {"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4", "weight": 1}],
     "system": "Be brief.", "tools": [...]}

Each key is read, or refused with the message's number, or reported by `unread`. Knows no template and no tokens.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from luthier.data.literals import JsonLiteral
from luthier.data.records import BadRowError, describe, parse_value

KEYS = ("dialog", "messages", "conversations")
ROLES = ("system", "user", "assistant", "tool")
Message = dict[str, Any]
REASONING = "reasoning_content"

_ROLE_NAMES = {
    "system": "system", "developer": "system", "user": "user", "human": "user", "assistant": "assistant",
    "ai": "assistant", "gpt": "assistant", "tool": "tool", "function": "tool", "function_response": "tool",
    "tool_response": "tool", "observation": "tool", "ipython": "tool",
    "function_call": "assistant", "tool_call": "assistant",
}  # fmt: skip
_PLAIN = {"role", "content"}
_CALL_ROLES = ("function_call", "tool_call")  # their content is the call
_REASONING_KEYS = (REASONING, "thinking", "reasoning")
_TEXT_PARTS = ("text", "input_text", "output_text")
# Keys that say whether a message carries loss, and the value that says it does.
_LOSS_KEYS = {
    "weight": True, "loss": True, "loss_weight": True, "loss_scale": True, "loss_mask": True, "train": True,
    "training": True, "trainable": True, "mask": False, "masked": False,
}  # fmt: skip
_BOOLEAN_KEYS = ("mask", "masked")  # as numbers they are written both ways
_PARTIAL_LOSS = ("train_detail", "training_detail")
_DUE = {
    "system": ("user",), "user": ("assistant",), "assistant": ("user", "tool"), "tool": ("assistant", "tool"),
}  # fmt: skip


class ChatError(ValueError):
    """A conversation or chat template that cannot be trained on; the message is one line without the row's name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """Messages with the roles ROLES, and the tools that the model may call.

    A message has `content` (text) and, if present in the source, `tool_calls`, `reasoning_content` and all keys that
    are not read here. `masked`: messages without loss; `has_masks`: the source says so by a key. `unmasked`: the keys
    that say that a message carries loss, by message. `unread`: keys of the row and of parts of contents that are not
    read.
    """

    messages: Sequence[Message]
    tools: Sequence[Any] | None = None
    masked: frozenset[int] = frozenset()
    has_masks: bool = False
    unmasked: Mapping[int, str] = field(default_factory=dict)
    unread: frozenset[str] = frozenset()

    def first(self, count: int) -> Conversation:
        """Return the conversation up to its first `count` messages."""
        return Conversation(messages=self.messages[:count], tools=self.tools)


@dataclass(slots=True, kw_only=True)
class _Reader:
    """Reads the messages of one list; `name`: the list's key."""

    name: str
    unread: set[str] = field(default_factory=set)
    masked: set[int] = field(default_factory=set)
    unmasked: dict[int, str] = field(default_factory=dict)
    in_prompt: set[int] = field(default_factory=set)  # the assistant's messages in the prompt of prompt and completion

    def read(self, items: Any) -> list[Message]:
        if not isinstance(items, list) or not items:
            raise ChatError(f"{self.name!r} must be a list of messages, each with 'role' and 'content'")
        return [self._message(item, number) for number, item in enumerate(items, 1)]

    def _message(self, item: Any, number: int) -> Message:
        if not isinstance(item, dict):
            raise ChatError(f"message {number} must be an object with 'role' and 'content'")
        if item.keys() == _PLAIN and item["role"] in ROLES and type(item["content"]) is str:  # most messages
            return dict(item)
        rest = {name: value for name, value in item.items() if value not in (None, [], {}) or name == "content"}
        is_sharegpt = "role" not in item and "from" in item
        source = rest.pop("from" if is_sharegpt else "role", None)
        role = _ROLE_NAMES.get(source.lower()) if isinstance(source, str) else None
        if role is None:
            raise ChatError(f"message {number} has the role {source!r}; expected {', '.join(ROLES)}")
        names = [key for key in ("content", "value") if key in rest]
        if len(names) > 1:
            raise ChatError(f"message {number} has both 'content' and 'value'; keep one of them")
        name = names[0] if names else ("value" if is_sharegpt else "content")
        is_call = source.lower() in _CALL_ROLES
        calls = _pop_calls(rest, name if is_call else "", number)
        if calls and role != "assistant":
            raise ChatError(f"message {number} is the {role}'s; only the assistant calls tools")
        reasoning = _pop_reasoning(rest, number)
        optional = bool(calls or reasoning) and role == "assistant"
        message: Message = {
            "role": role,
            "content": self._text(rest.pop(name, None), f"message {number}", name, optional),
        }
        if calls:
            message["tool_calls"] = calls
        if reasoning:
            if role != "assistant":
                raise ChatError(f"message {number} is the {role}'s; only the assistant has {REASONING!r}")
            message[REASONING] = reasoning
        key, has_loss = _pop_loss(rest, f"message {number}")
        if has_loss:
            self.unmasked[number - 1] = key
        elif key:
            self.masked.add(number - 1)
        return message | (_plain(rest) if rest else {})

    def _text(self, value: Any, where: str, name: str, optional: bool = False) -> str:
        """Return a content's text: a string, or text parts joined."""
        if type(value) is str:
            return value
        if isinstance(value, list):
            return "".join(
                self._part(part, f"{where}: part {number} of {name!r}") for number, part in enumerate(value, 1)
            )
        if value is None and optional:
            return ""
        raise ChatError(f"{where}: {name!r} must be a string or a list of text parts, not {describe(value)}")

    def _part(self, part: Any, where: str) -> str:
        if not isinstance(part, dict):
            raise ChatError(f'{where} is {describe(part)}; expected {{"type": "text", "text": ...}}')
        rest = {name: value for name, value in part.items() if value is not None}
        kind = rest.pop("type", None) or ("text" if "text" in rest else next(iter(rest), "unknown"))
        text = rest.pop("text", None)
        if kind not in _TEXT_PARTS:
            raise ChatError(f"{where} is of type {str(kind)!r}; only text is read")
        if type(text) is not str:
            raise ChatError(f"{where}: 'text' must be a string, not {describe(text)}")
        self.unread.update(f"messages[].content[].{name}" for name in rest)
        return text

    def system(self, fields: dict[str, Any], messages: Sequence[Message]) -> list[Message]:
        """Return the system message that is written beside the list, which must not contain another one."""
        present = [key for key in ("system", "system_prompt") if fields.get(key) not in (None, "", [])]
        if not present:
            return []
        text = self._text(fields[present[0]], "the row", present[0])
        if len(present) > 1 or messages[0]["role"] == "system":
            other = repr(present[1]) if len(present) > 1 else "the first message"
            raise ChatError(f"{present[0]!r} and {other} are both system messages; keep one of them")
        return [{"role": "system", "content": text}] if text.strip() else []


def has_conversation(fields: Mapping[str, Any]) -> bool:
    """Whether a row is a conversation: it has one of KEYS, or TRL's prompt and completion as message lists."""
    return bool(fields.keys() & set(KEYS)) or _is_prompt_completion(fields)


def _is_prompt_completion(fields: Mapping[str, Any]) -> bool:
    return all(isinstance(fields.get(key), list) for key in ("prompt", "completion"))


def read_conversation(fields: Mapping[str, Any]) -> Conversation:
    """Read a training row. Raises ChatError.

    Expects an optional system message, then user and assistant in turns; an assistant's turn may be followed by the
    results of tools and another assistant's turn. The assistant is last.
    """
    if _is_prompt_completion(fields) and not any(fields.get(key) is not None for key in KEYS):
        return _read_prompt_completion(fields)
    key = _conversation_key(fields)
    reader = _Reader(name=key)
    messages = reader.read(fields[key])
    _check_order(messages)
    if messages[-1]["role"] != "assistant":
        raise ChatError("the conversation does not end with the assistant, so its last message has no answer to learn")
    return _conversation(fields, (key,), reader, messages)


def read_request(fields: Mapping[str, Any]) -> Conversation:
    """Read the conversation of a request, to which the assistant's next turn is generated. Raises ChatError."""
    key = "prompt" if isinstance(fields.get("prompt"), list) else _conversation_key(fields)
    reader = _Reader(name=key)
    messages = reader.read(fields[key])
    for number, (before, message) in enumerate(zip([None, *messages], messages, strict=False), 1):
        if message["role"] == "tool" and (before is None or before["role"] not in ("assistant", "tool")):
            raise ChatError(f"message {number} is the tool's, but no assistant's turn precedes it")
    if messages[-1]["role"] == "assistant":
        raise ChatError("the last message has the role assistant; remove it, or end with a user message")
    return _conversation(fields, (key,), reader, messages)


def _read_prompt_completion(fields: Mapping[str, Any]) -> Conversation:
    """Read TRL's form: the assistant's turns in the prompt carry no loss."""
    reader, rest = _Reader(name="prompt"), _Reader(name="completion")
    prompt, completion = reader.read(fields["prompt"]), rest.read(fields["completion"])
    messages = [*prompt, *completion]
    _check_order(messages)
    if messages[-1]["role"] != "assistant":
        raise ChatError("'completion' does not end with the assistant, so its last message has no answer to learn")
    reader.unread |= rest.unread
    reader.masked |= {len(prompt) + place for place in rest.masked}
    answers = {place for place, message in enumerate(prompt) if message["role"] == "assistant"}
    reader.in_prompt = answers - reader.unmasked.keys()
    reader.unmasked |= {len(prompt) + place: name for place, name in rest.unmasked.items()}
    return _conversation(fields, ("prompt", "completion"), reader, messages)


def _conversation_key(fields: Mapping[str, Any]) -> str:
    present = [key for key in KEYS if fields.get(key) is not None] or [key for key in KEYS if key in fields]
    if len(present) == 1:
        return present[0]
    present_keys = "has " + " and ".join(map(repr, present)) if present else "lacks all of them"
    near = [key for key in fields if key.lower() in KEYS and key not in KEYS]
    hint = f"; it has {near[0]!r}: keys are case-sensitive" if near else ""
    raise ChatError(f"expected one of the keys {', '.join(KEYS)}; the row {present_keys}{hint}")


def _conversation(
    fields: Mapping[str, Any], keys: Sequence[str], reader: _Reader, messages: list[Message]
) -> Conversation:
    """Add what the row says beside its list of messages."""
    rest = {name: value for name, value in fields.items() if value not in (None, [], {}) and name not in (*KEYS, *keys)}
    system = reader.system(rest, messages)
    tools = _read_tools(rest)
    if _pop_loss(rest, "the row", ["weight"]) == ("weight", False):
        reader.masked.update(range(len(messages)))
    unread = rest.keys() - {"system", "system_prompt", "tools", "functions"}
    return Conversation(
        messages=[*system, *messages],
        tools=tools,
        masked=frozenset(len(system) + place for place in reader.masked | reader.in_prompt),
        has_masks=bool(reader.masked),
        unmasked={len(system) + place: name for place, name in reader.unmasked.items()},
        unread=frozenset(reader.unread | unread),
    )


def _check_order(messages: Sequence[Message]) -> None:
    due: tuple[str, ...] = ("user",)
    for number, message in enumerate(messages, 1):
        role = message["role"]
        if number == 1 and role == "system":
            continue
        if role not in due:
            raise ChatError(
                f"message {number} is the {role}'s where the {due[0]}'s is due; after an optional system message, "
                "user and assistant take turns, and tools answer the assistant"
            )
        due = _DUE[role]


def _pop_loss(rest: dict[str, Any], where: str, names: Iterable[str] = _LOSS_KEYS) -> tuple[str, bool]:
    """Remove the keys that say whether a message carries loss; return one of them, and what it says. "" for none."""
    partial = next((key for key in _PARTIAL_LOSS if key in rest), None)
    if partial:
        raise ChatError(f"{where}: {partial!r} trains parts of a turn, which is not supported; train or mask the turn")
    stated: dict[str, bool] = {}
    for key in rest.keys() & set(names):
        value = rest.pop(key)
        is_number = not isinstance(value, bool) and value not in ("true", "false")
        text = {"true": "1", "false": "0", "1.0": "1", "0.0": "0"}.get(str(value).lower(), str(value))
        if type(value) is str or text not in ("0", "1") or (is_number and key in _BOOLEAN_KEYS):
            expected = "true (no loss) or false" if key in _BOOLEAN_KEYS else "0 (no loss) or 1"
            raise ChatError(f"{where}: {key!r} is {_shorten(value)}; expected {expected}")
        stated[key] = (text == "1") is _LOSS_KEYS[key]
    if len(set(stated.values())) > 1:
        raise ChatError(f"{where}: {' and '.join(map(repr, sorted(stated)))} contradict each other; keep one of them")
    return next(iter(stated.items()), ("", False))


def _shorten(value: Any) -> str:
    text = str(value) if isinstance(value, JsonLiteral) else repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _pop_reasoning(rest: dict[str, Any], number: int) -> str:
    """Remove and return what the assistant thought before its answer; "" for none."""
    stated = {key: rest.pop(key) for key in _REASONING_KEYS if key in rest}
    for key, value in stated.items():
        if type(value) is not str:
            raise ChatError(f"message {number}: {key!r} must be a string, not {describe(value)}")
    texts = {value for value in stated.values() if value.strip()}
    if len(texts) > 1:
        raise ChatError(f"message {number}: {' and '.join(map(repr, stated))} differ; keep one of them")
    return texts.pop() if texts else ""


def _pop_calls(rest: dict[str, Any], content: str, number: int) -> list[Any]:
    """Remove and return a message's tool calls: tool_calls, function_call, or those that its `content` is."""
    stated = {key: rest.pop(key) for key in ("tool_calls", "function_call") if rest.get(key) not in (None, [])}
    rest.pop("tool_calls", None)
    if content:
        stated[content] = rest.pop(content, None)
    if len(stated) > 1:
        raise ChatError(f"message {number}: {' and '.join(map(repr, stated))} are both calls; keep one of them")
    for key, value in stated.items():
        calls = _parse_json(value, f"message {number}: {key!r}")
        calls = calls if isinstance(calls, list) else [calls]
        return [_read_call(call, f"message {number}: call {place} of {key!r}") for place, call in enumerate(calls, 1)]
    return []


def _read_call(call: Any, where: str) -> dict[str, Any]:
    """Return a call as {"function": {"name", "arguments"}}; `arguments` is an object, or the text of one."""
    call = {name: value for name, value in call.items() if value is not None} if isinstance(call, dict) else {}
    function = call.get("function", call)
    if not isinstance(function, dict) or type(function.get("name")) is not str:
        raise ChatError(f'{where} must be {{"function": {{"name": ..., "arguments": {{...}}}}}}')
    arguments = function.get("arguments", {})
    if arguments in (None, ""):
        arguments = {}
    if not isinstance(_parse_json(arguments, f"{where}: 'arguments'"), dict):
        raise ChatError(f"{where}: 'arguments' must be an object, or the text of one, not {describe(arguments)}")
    function = function | {"arguments": arguments}
    return call | {"function": function} if "function" in call else {"type": "function", "function": function}


def _read_tools(rest: Mapping[str, Any]) -> list[Any] | None:
    """Return the row's tools as {"type": "function", "function": {"name", ...}}; None without any."""
    present = [key for key in ("tools", "functions") if rest.get(key) not in ("", [])]
    present = [key for key in present if key in rest]
    if not present:
        return None
    if len(present) > 1:
        raise ChatError("'tools' and 'functions' are both lists of tools; keep one of them")
    tools = _parse_json(rest[present[0]], repr(present[0]))
    if not isinstance(tools, list):
        raise ChatError(f"{present[0]!r} must be a list of tools, or the text of one, not {describe(tools)}")
    return [_read_tool(tool, f"tool {number} of {present[0]!r}") for number, tool in enumerate(tools, 1)] or None


def _read_tool(tool: Any, where: str) -> Any:
    function = tool.get("function", tool) if isinstance(tool, dict) else None
    if not isinstance(function, dict) or type(function.get("name")) is not str:
        raise ChatError(f'{where} must be {{"type": "function", "function": {{"name": ..., "parameters": {{...}}}}}}')
    return tool if "function" in tool else {"type": "function", "function": tool}


def _parse_json(value: Any, where: str) -> Any:
    """Return a JSON value, given as such or as its text, with numbers and booleans as Python's."""
    if type(value) is str:
        try:
            value = parse_value(value)
        except BadRowError as error:
            raise ChatError(f"{where}: {error}") from None
    return _plain(value)


def _plain(value: Any) -> Any:
    """Return the value with the numbers and booleans that are kept as written as Python's."""
    if isinstance(value, JsonLiteral):
        return json.loads(value)
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value
