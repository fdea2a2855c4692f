"""Conversations as they are exported: every key is read, refused by name, or reported as not read."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from luthier.data.conversation import ChatError, Conversation, has_conversation, read_conversation, read_request
from luthier.data.records import parse_object

USER = {"role": "user", "content": "q"}
ANSWER = {"role": "assistant", "content": "a"}
CALL = {"name": "f", "arguments": {"x": 1, "deep": [1.5, True, None]}}
CALLING = {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function", "function": CALL}]}
RESULT = {"role": "tool", "content": "7", "tool_call_id": "1"}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "minimum": 1, "strict": True}}}


def read(fields: dict[str, Any]) -> Conversation:
    """Read a row as a file has it: with numbers and booleans as written."""
    return read_conversation(parse_object(json.dumps(fields)))


def contents(conversation: Conversation) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in conversation.messages]


@pytest.mark.parametrize(
    ("mask", "masked"),
    [({"weight": 0}, True), ({"weight": 1}, False), ({"weight": 0.0}, True), ({"weight": 1.0}, False),
     ({"weight": None}, False), ({"loss": False}, True), ({"loss": True}, False), ({"loss": 0}, True),
     ({"mask": True}, True), ({"mask": False}, False), ({"masked": True}, True), ({"train": False}, True),
     ({"training": True}, False), ({"trainable": False}, True), ({"loss_mask": 0}, True), ({"loss_mask": 1}, False),
     ({"loss_weight": 0}, True), ({"loss_scale": 0.0}, True), ({"weight": 0, "mask": True}, True), ({}, False)],
)  # fmt: skip
def test_masks(mask: dict[str, Any], masked: bool) -> None:
    conversation = read({"messages": [USER, ANSWER | mask, USER, ANSWER]})
    assert conversation.masked == ({1} if masked else set())
    assert conversation.has_masks is masked
    assert conversation.messages[1] == ANSWER, "a mask is no part of the message"
    assert read({"messages": [USER, ANSWER | mask], "system": "s"}).masked == ({2} if masked else set())


def test_a_mask_of_the_row() -> None:
    assert read({"messages": [USER, ANSWER], "weight": 0}).masked == {0, 1}
    assert read({"messages": [USER, ANSWER], "weight": 1}).masked == set()
    assert read({"messages": [USER, ANSWER], "loss": 2.25}).unread == {"loss"}, "a number of the row, such as a metric"


@pytest.mark.parametrize(
    ("mask", "message"),
    [({"weight": 0.5}, "message 2: 'weight' is 0.5; expected 0 (no loss) or 1"),
     ({"weight": 2}, "message 2: 'weight' is 2; expected 0 (no loss) or 1"),
     ({"weight": "0"}, "message 2: 'weight' is '0'; expected 0 (no loss) or 1"),
     ({"loss": [0, 1]}, "message 2: 'loss' is"),
     ({"mask": 1}, "message 2: 'mask' is 1; expected true (no loss) or false"),
     ({"mask": "User"}, "message 2: 'mask' is 'User'; expected true (no loss) or false"),
     ({"weight": 1, "train": False}, "message 2: 'train' and 'weight' contradict each other"),
     ({"train_detail": [{"begin_offset": 0, "end_offset": 1, "train": False}]}, "'train_detail' trains parts")],
)  # fmt: skip
def test_masks_that_say_something_else(mask: dict[str, Any], message: str) -> None:
    with pytest.raises(ChatError, match=re.escape(message)):
        read({"messages": [USER, ANSWER | mask]})


@pytest.mark.parametrize("text", ["Be brief.", [{"type": "text", "text": "Be "}, {"text": "brief."}]])
@pytest.mark.parametrize("key", ["system", "system_prompt"])
def test_a_system_text_beside_the_list(key: str, text: Any) -> None:
    conversation = read({"messages": [USER, ANSWER], key: text})
    assert contents(conversation) == [("system", "Be brief."), ("user", "q"), ("assistant", "a")]
    assert conversation.unread == set()
    assert contents(read({"messages": [USER, ANSWER], key: ""})) == [("user", "q"), ("assistant", "a")]
    with pytest.raises(ChatError, match=f"{key!r} and the first message are both system messages"):
        read({"messages": [{"role": "system", "content": "x"}, USER, ANSWER], key: text})


@pytest.mark.parametrize(
    ("name", "role"),
    [("developer", "system"), ("system", "system"), ("human", "user"), ("User", "user"), ("ai", "assistant"),
     ("gpt", "assistant"), ("Assistant", "assistant"), ("function_response", "tool"), ("observation", "tool"),
     ("function", "tool"), ("tool", "tool"), ("ipython", "tool")],
)  # fmt: skip
@pytest.mark.parametrize(("role_key", "text_key"), [("role", "content"), ("from", "value")])
def test_roles(name: str, role: str, role_key: str, text_key: str) -> None:
    turns = {"system": [], "user": [], "assistant": [USER], "tool": [USER, ANSWER]}[role]
    rest = {"system": [USER, ANSWER], "user": [ANSWER], "assistant": [], "tool": [ANSWER]}[role]
    conversation = read({"conversations": [*turns, {role_key: name, text_key: "x"}, *rest]})
    assert contents(conversation)[len(turns)] == (role, "x")


@pytest.mark.parametrize(
    "parts",
    [[{"type": "text", "text": "2 + "}, {"type": "text", "text": "2?"}], [{"text": "2 + "}, {"text": "2?"}],
     [{"type": "input_text", "text": "2 + 2?"}], [{"type": "text", "text": "2 + 2?", "image_url": None}]],
)  # fmt: skip
def test_text_in_parts(parts: Any) -> None:
    assert contents(read({"messages": [USER | {"content": parts}, ANSWER]}))[0] == ("user", "2 + 2?")
    request = parse_object(json.dumps({"messages": [USER | {"content": parts}]}))
    assert contents(read_request(request)) == [("user", "2 + 2?")]


@pytest.mark.parametrize(
    ("part", "message"),
    [({"type": "image_url", "image_url": {}}, "part 1 of 'content' is of type 'image_url'; only text is read"),
     ({"image": {"format": "png"}}, "part 1 of 'content' is of type 'image'"),
     ({"toolUse": {"name": "f"}}, "part 1 of 'content' is of type 'toolUse'"),
     ({"type": "text", "text": 5}, "part 1 of 'content': 'text' must be a string"),
     ({"type": "thinking", "thinking": "x"}, "part 1 of 'content' is of type 'thinking'"),
     ("text", "part 1 of 'content' is a string")],
)  # fmt: skip
def test_parts_that_are_not_text(part: Any, message: str) -> None:
    for reading in (read_conversation, read_request):
        with pytest.raises(ChatError, match=re.escape("message 1: " + message)):
            reading(
                parse_object(
                    json.dumps({"messages": [USER | {"content": [part]}, ANSWER][: 1 + (reading is read_conversation)]})
                )
            )


@pytest.mark.parametrize("tools", [[TOOL], json.dumps([TOOL]), [TOOL["function"]]])
def test_tools(tools: Any) -> None:
    conversation = read({"messages": [USER, CALLING, RESULT, ANSWER], "tools": tools})
    assert conversation.tools == [TOOL]
    assert conversation.messages[1]["tool_calls"][0]["function"]["arguments"] == {"x": 1, "deep": [1.5, True, None]}
    assert conversation.messages[1]["content"] == ""
    assert conversation.messages[2] == RESULT
    assert conversation.unread == set()
    assert all(
        read({"messages": [USER, ANSWER], "tools": none}).tools is None for none in (None, list[Any](), "", "[]")
    )


@pytest.mark.parametrize(
    "calling",
    [{"role": "assistant", "content": "", "tool_calls": [CALL]},
     {"role": "assistant", "tool_calls": json.dumps([{"type": "function", "function": CALL}])},
     {"role": "assistant", "content": None, "function_call": CALL, "tool_calls": None},
     {"from": "function_call", "value": json.dumps(CALL)}, {"role": "tool_call", "content": json.dumps(CALL)}],
)  # fmt: skip
def test_calls_of_other_exports(calling: dict[str, Any]) -> None:
    conversation = read({"messages": [USER, calling, {"role": "observation", "content": "7"}, ANSWER]})
    assert conversation.messages[1]["tool_calls"] == [{"type": "function", "function": CALL}]
    assert [role for role, _ in contents(conversation)] == ["user", "assistant", "tool", "assistant"]


def test_arguments_stay_as_they_are_written() -> None:
    call = {"name": "f", "arguments": '{"x":1}'}
    conversation = read(
        {"messages": [USER, {"role": "assistant", "tool_calls": [call]}], "functions": [TOOL["function"]]}
    )
    assert conversation.messages[1]["tool_calls"][0]["function"]["arguments"] == '{"x":1}'
    assert conversation.tools == [TOOL]


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"tools": "not JSON"}, "'tools': not JSON"), ({"tools": {"name": "f"}}, "'tools' must be a list of tools"),
     ({"tools": [{"function": {}}]}, "tool 1 of 'tools' must be"), ({"tools": [TOOL], "functions": [CALL]}, "are both"),
     ({"messages": [USER, {"role": "assistant", "tool_calls": ["f"]}]}, "message 2: call 1 of 'tool_calls' must be"),
     ({"messages": [USER, {"role": "assistant", "tool_calls": [{"name": "f", "arguments": "x"}]}]},
      "message 2: call 1 of 'tool_calls': 'arguments': not JSON"),
     ({"messages": [USER, {"role": "assistant", "tool_calls": [{"name": "f", "arguments": "[1]"}]}]},
      "call 1 of 'tool_calls': 'arguments' must be an object"),
     ({"messages": [USER | {"tool_calls": [CALL]}, ANSWER]}, "message 1 is the user's; only the assistant calls tools"),
     ({"messages": [USER, ANSWER | {"tool_calls": [CALL], "function_call": CALL}]}, "are both calls"),
     ({"messages": [RESULT, ANSWER]}, "message 1 is the tool's where the user's is due"),
     ({"messages": [USER, ANSWER, RESULT]}, "does not end with the assistant"),
     ({"messages": [USER, {"from": "gpt", "content": "a", "value": "b"}]}, "has both 'content' and 'value'")],
)  # fmt: skip
def test_bad_tools_and_calls(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ChatError, match=re.escape(message)) as caught:
        read({"messages": [USER, ANSWER]} | fields)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["reasoning_content", "thinking", "reasoning"])
def test_reasoning(key: str) -> None:
    assert read({"messages": [USER, ANSWER | {key: "why"}]}).messages[1] == ANSWER | {"reasoning_content": "why"}
    assert read({"messages": [USER, ANSWER | {key: " "}]}).messages[1] == ANSWER
    with pytest.raises(ChatError, match="only the assistant has 'reasoning_content'"):
        read({"messages": [USER | {key: "why"}, ANSWER]})
    with pytest.raises(ChatError, match=f"message 2: {key!r} must be a string, not a list"):
        read({"messages": [USER, ANSWER | {key: ["why"]}]})
    with pytest.raises(ChatError, match="differ; keep one of them"):
        read({"messages": [USER, ANSWER | {"reasoning_content": "a", "thinking": "b"}]})


def test_prompt_and_completion_as_lists_of_messages() -> None:
    fields = {"prompt": [USER, ANSWER, USER], "completion": [ANSWER], "id": 3}
    assert has_conversation(fields)
    conversation = read(fields)
    assert contents(conversation) == [("user", "q"), ("assistant", "a")] * 2
    assert conversation.masked == {1}
    assert not conversation.has_masks
    assert conversation.unread == {"id"}
    assert read(fields | {"prompt": [USER, ANSWER | {"weight": 1}, USER]}).masked == set()
    assert read(fields | {"completion": [ANSWER | {"weight": 0}]}).masked == {1, 3}
    assert contents(read_request(fields)) == contents(conversation)[:3]
    with pytest.raises(ChatError, match="'completion' does not end with the assistant"):
        read({"prompt": [USER], "completion": [ANSWER, USER]})
    assert not has_conversation({"prompt": "q", "completion": "a"})


def test_what_is_not_read_is_named() -> None:
    row = {"messages": [USER | {"content": [{"text": "q", "cache_control": {}}]}, ANSWER], "score": 1, "id": None}
    assert read(row).unread == {"score", "messages[].content[].cache_control"}
    assert read({"messages": [USER | {"weight": 1}, ANSWER]}).unmasked == {0: "weight"}


def test_the_other_list_is_null() -> None:
    assert contents(read({"messages": [USER, ANSWER], "dialog": None})) == [("user", "q"), ("assistant", "a")]


@pytest.mark.parametrize(
    ("messages", "message"),
    [([ANSWER], "the last message has the role assistant"), ([RESULT], "message 1 is the tool's, but no assistant's"),
     ([], "must be a list of messages"), ([USER, RESULT], "message 2 is the tool's")],
)  # fmt: skip
def test_bad_requests(messages: Any, message: str) -> None:
    with pytest.raises(ChatError, match=message):
        read_request({"messages": messages})
