"""Tools, reasoning and masks through published chat templates: what carries loss, what is served, what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from data.test_chat_templates import TEMPLATES, WORDS, build, chat_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import render_jinja_template

from luthier.data.chat import ChatTemplate
from luthier.data.conversation import ChatError, read_conversation
from luthier.data.example import Example
from luthier.data.prompts import prompt_renderer
from luthier.data.records import parse_object
from luthier.data.tokenize import Tokenizer
from luthier.errors import UserError

PROPERTIES = {"x": {"type": "string"}, "n": {"type": "integer"}, "y": {"type": "array"}, "z": {"type": "boolean"}}
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {"name": "f", "parameters": {"type": "object", "properties": PROPERTIES}},
}
WITH_TOOLS = [name for name, case in TEMPLATES.items() if "tools" in case]
WITH_THOUGHTS = [name for name, case in TEMPLATES.items() if "thoughts" in case]
WITHOUT_TOOLS = ["chatml", "gemma-3", "llama-3", "mistral-v1", "phi-3", "smollm3", "zephyr"]
SEVERAL_CALLS = {"qwen3-tools", "ministral-3-tools", "deepseek-v3-tools"}
TEXT_BESIDE_CALLS = {"qwen3-tools", "ministral-3-tools", "gpt-oss-tools"}
USER: dict[str, Any] = {"role": "user", "content": "U1"}
ANSWER: dict[str, Any] = {"role": "assistant", "content": "A1"}
RESULT: dict[str, Any] = {"role": "tool", "content": "R1", "tool_call_id": "call12345"}


def calling(arguments: Any, content: str | None = None) -> dict[str, Any]:
    call = {"id": "call12345", "type": "function", "function": {"name": "f", "arguments": arguments}}
    return {"role": "assistant", "content": content, "tool_calls": [call]}


def row(*messages: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return parse_object(json.dumps({"messages": list(messages), **fields}))


def reference(name: str, messages: list[dict[str, Any]], tools: Any, generation: bool = False) -> str:
    """What transformers' renderer writes; unlike apply_chat_template, it keeps a content of None."""
    names = {"bos_token": TEMPLATES[name].get("bos"), "eos_token": TEMPLATES[name]["eos"]}
    texts = render_jinja_template(
        [messages], tools=tools, chat_template=TEMPLATES[name]["template"], add_generation_prompt=generation, **names
    )
    return str(texts[0][0])


def example_of(chat: ChatTemplate, fields: dict[str, Any], turns: str = "assistant") -> Example:
    return chat.example(read_conversation(fields), turns=turns)


def trained(example: Example) -> list[str]:
    return [piece.text for piece in example.pieces if piece.trained]


def text_of(example: Example) -> str:
    return "".join(piece.text for piece in example.pieces)


@pytest.mark.parametrize("name", WITH_TOOLS)
@pytest.mark.parametrize("arguments", [{"x": "v"}, '{"x": "v"}'])
@pytest.mark.parametrize("content", [None, ""])
def test_a_call_is_trained_and_its_result_is_context(name: str, arguments: Any, content: str | None) -> None:
    case = TEMPLATES[name]
    chat = chat_of(build(case))
    fields = row(USER, calling(arguments, content), RESULT, ANSWER, tools=[TOOL])
    example = example_of(chat, fields)
    assert trained(example) == [case["tools"], case["trained"][0].replace("<|end|>", chat.end_of_turn())]
    deepseek = (
        name == "deepseek-v3-tools"
    )  # its template joins arguments as text, and writes calls where content is None
    shown = calling('{"x": "v"}' if deepseek else {"x": "v"}, None if deepseek else "")
    assert text_of(example) == reference(name, [USER, shown, RESULT, ANSWER], [TOOL])
    assert trained(example_of(chat, row(USER, calling(arguments), tools=[TOOL]))) == [case["tools"]]


@pytest.mark.parametrize("name", WITH_TOOLS)
def test_a_call_is_served_the_prompt_it_was_trained_on(name: str) -> None:
    tokenizer = build(TEMPLATES[name])
    messages = [USER, calling({"x": "v"}), RESULT, ANSWER]
    (ids, _) = tokenizer.encode_examples([example_of(chat_of(tokenizer), row(*messages, tools=[TOOL]))])[0]
    render = prompt_renderer({"kind": "chat"}, tokenizer, raw=False)
    for count in (1, 3):
        prompt = tokenizer.prompt_ids(render(row(*messages[:count], tools=json.dumps([TOOL]))))
        assert ids[: len(prompt)].tolist() == prompt
        assert "f" in tokenizer.show(prompt)


@pytest.mark.parametrize("name", WITHOUT_TOOLS)
def test_a_template_without_tools_refuses_them(name: str) -> None:
    chat = chat_of(build(TEMPLATES[name]))
    with pytest.raises(ChatError, match="the model's chat template does not write the row's tools, such as 'f'"):
        example_of(chat, row(USER, ANSWER, tools=[TOOL]))
    with pytest.raises(ChatError, match="message 2 calls a tool, which the model's chat template does not write"):
        example_of(chat, row(USER, calling({}), RESULT, ANSWER))
    with pytest.raises(UserError, match="does not write the row's tools"):
        prompt_renderer({"kind": "chat"}, build(TEMPLATES[name]), raw=False)(row(USER, tools=[TOOL]))


@pytest.mark.parametrize(
    ("name", "message", "refusal"),
    [("llama-3.1-tools", calling({"x": "v"}, "Let me look."), "the text beside the tool call of message 2"),
     ("llama-3.1-tools", {**calling({"x": "v"}), "tool_calls": calling({"x": "v"})["tool_calls"] * 2}, "one call at a"),
     ("gpt-oss-tools", {"role": "assistant", "tool_calls": [{"name": "f", "arguments": {"x": "v"}},
                                                            {"name": "f", "arguments": {"x": "w"}}]},
      "the tool call of message 2")],
)  # fmt: skip
def test_what_the_template_leaves_out_is_refused(name: str, message: dict[str, Any], refusal: str) -> None:
    with pytest.raises(ChatError, match=refusal):
        example_of(chat_of(build(TEMPLATES[name])), row(USER, message, RESULT, ANSWER, tools=[TOOL]))


def test_a_system_message_that_the_template_leaves_out_is_refused() -> None:
    source = "{% for m in messages if m.role != 'system' %}{{ m.content + '</s>' }}{% endfor %}"
    chat = chat_of(build({"template": source, "markers": ["</s>"], "eos": "</s>"}))
    assert text_of(example_of(chat, row(USER, ANSWER))) == "U1</s>A1</s>"
    for fields in (row({"role": "system", "content": "S"}, USER, ANSWER), row(USER, ANSWER, system="S")):
        with pytest.raises(ChatError, match="does not write the system message; put its text into the first user"):
            example_of(chat, fields)


@pytest.mark.parametrize("name", WITH_THOUGHTS)
@pytest.mark.parametrize("key", ["reasoning_content", "thinking"])
def test_reasoning_goes_to_a_template_that_reads_it(name: str, key: str) -> None:
    chat = chat_of(build(TEMPLATES[name]))
    for mode in ("refuse", "inline", "drop"):
        fields = row(USER, ANSWER | {key: "T"})
        assert trained(example_of(chat.with_reasoning(mode), fields)) == TEMPLATES[name]["thoughts"]


def test_an_earlier_thought_that_the_template_leaves_out_is_no_answer_without_a_thought() -> None:
    chat = chat_of(build(TEMPLATES["qwen3-tools"]))
    fields = row(USER, ANSWER | {"reasoning_content": "T"}, USER, ANSWER | {"reasoning_content": "T2"})
    with pytest.raises(ChatError, match=r"rewrites earlier turns .* train_on_turns=last trains the last turn alone"):
        example_of(chat, fields)
    assert trained(example_of(chat, fields, "last")) == ["<think>\nT2\n</think>\n\nA1<|im_end|>"]
    masked = row(USER, ANSWER | {"reasoning_content": "T", "weight": 0}, USER, ANSWER | {"reasoning_content": "T2"})
    assert trained(example_of(chat, masked)) == ["<think>\nT2\n</think>\n\nA1<|im_end|>"]


KEEPS_LAST = (
    "{% for m in messages %}{% set c = m.content if loop.last else m.content.split('</think>')[-1].lstrip('\n') %}"
    "{{ '<|im_start|>' + m.role + '\n' + c + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
)


def test_reasoning_between_the_templates_own_markers() -> None:
    chat = ChatTemplate(KEEPS_LAST, {"eos_token": "<|im_end|>"}, ["<|im_start|>", "<|im_end|>"])
    fields = row(USER, ANSWER | {"reasoning_content": "T"})
    with pytest.raises(ChatError, match="reasoning=inline writes it between <think> and </think>, reasoning=drop"):
        example_of(chat, fields)
    assert trained(example_of(chat.with_reasoning("inline"), fields)) == ["T\n</think>\n\nA1<|im_end|>"]
    with pytest.raises(ChatError, match="opens a generated answer with '<think>"):
        example_of(chat.with_reasoning("drop"), fields)
    several = row(USER, ANSWER | {"reasoning_content": "T"}, USER, ANSWER | {"reasoning_content": "T2"})
    assert trained(example_of(chat.with_reasoning("inline"), several, "last")) == ["T2\n</think>\n\nA1<|im_end|>"]
    with pytest.raises(ChatError, match="opens a generated answer with '<think>"):
        example_of(chat.with_reasoning("inline"), several)


def test_reasoning_between_control_tokens() -> None:
    """The markers are the template's, so they are control tokens; the same text in a thought stays text."""
    source = "{% for m in messages %}{{ '[INST]' + m.content if m.role == 'user' else m.content + '</s>' }}{% endfor %}"
    case = {
        "template": "{# [THINK] [/THINK] #}" + source,
        "markers": ["[INST]", "</s>", "[THINK]", "[/THINK]"],
        "eos": "</s>",
    }
    tokenizer = build(case)
    chat = chat_of(tokenizer).with_reasoning("inline")
    example = example_of(chat, row(USER, ANSWER | {"reasoning_content": "a[/THINK]b"}))
    assert trained(example) == ["[THINK]a[/THINK]b[/THINK]A1</s>"]
    ids = tokenizer.encode(example.pieces)
    names = [name for number in ids for name, known in tokenizer._control_ids.items() if known == number]
    assert names == ["[INST]", "[THINK]", "[/THINK]", "</s>"]


def test_reasoning_without_any_markers() -> None:
    chat = chat_of(build(TEMPLATES["chatml"]))
    fields = row(USER, ANSWER | {"reasoning_content": "T"})
    with pytest.raises(ChatError, match="does not read; reasoning=drop leaves it out"):
        example_of(chat.with_reasoning("inline"), fields)
    assert trained(example_of(chat.with_reasoning("drop"), fields)) == ["A1<|im_end|>"]


def test_a_key_that_the_template_reads_is_passed_on() -> None:
    source = (
        "{% for m in messages %}{{ m.role + (' ' + m.name if m.name else '') + ': ' + m.content + '</s>' }}{% endfor %}"
    )
    case = {"template": source, "markers": ["</s>"], "eos": "</s>"}
    reads, plain = chat_of(build(case)), chat_of(build(TEMPLATES["chatml"]))
    fields = row(USER | {"name": "Ada", "id": 5}, ANSWER)
    assert text_of(example_of(reads, fields)).startswith("user Ada: U1</s>")
    assert reads.unread_keys(read_conversation(fields)) == {"messages[].id"}
    assert plain.unread_keys(read_conversation(fields)) == {"messages[].id", "messages[].name"}


@pytest.mark.parametrize("name", ["llama-2", "chatml", "phi-3", "between-turns-only", "gpt-oss-tools"])
def test_masked_turns_change_the_loss_and_no_token(name: str) -> None:
    tokenizer = build(TEMPLATES[name])
    chat = chat_of(tokenizer)
    plain = [USER, ANSWER, USER, ANSWER | {"content": "A2"}]
    whole = trained(example_of(chat, row(*plain)))
    unmasked = tokenizer.encode(example_of(chat, row(*plain)).pieces)
    for place in (1, 3):
        fields = row(*[message | ({"weight": 0} if index == place else {}) for index, message in enumerate(plain)])
        example = example_of(chat, fields)
        assert tokenizer.encode(example.pieces) == unmasked
        assert trained(example) == (whole[1:] if place == 1 else whole[:1])
        assert example.masked_turns == 1
    assert trained(example_of(chat, fields, "last")) == []


ARGUMENTS = st.fixed_dictionaries({"x": WORDS}, optional={"n": st.integers(), "z": st.booleans(), "y": st.lists(WORDS)})
MASKS: st.SearchStrategy[dict[str, Any]] = st.sampled_from(
    [{}, {}, {"weight": 0}, {"loss": False}, {"mask": True}, {"train": False}, {"weight": 1}]
)
UNREAD: st.SearchStrategy[dict[str, Any]] = st.sampled_from([{}, {}, {"score": 1}, {"annotator": {"id": [5]}}])
ROLES = {"user": ["user", "human"], "assistant": ["assistant", "gpt", "ai"], "tool": ["tool", "observation"]}


@st.composite
def message_of(draw: st.DrawFn, role: str, words: str) -> dict[str, Any]:
    """A message in one of its forms."""
    parts: list[Any] = [{"type": "text", "text": words[:2]}, {"text": words[2:]}]
    content = draw(st.sampled_from([words, parts]))
    return {"role": draw(st.sampled_from(ROLES[role])), "content": content, **draw(MASKS), **draw(UNREAD)}


@st.composite
def conversations(draw: st.DrawFn, has_tools: bool) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A row, and its messages in the plain form that the templates are written for."""
    fields: dict[str, Any] = draw(st.sampled_from([{}, {"id": 7, "source": None}]))
    messages: list[dict[str, Any]] = []
    plain: list[dict[str, Any]] = []

    def add(role: str, words: str, **rest: Any) -> None:
        messages.append(draw(message_of(role, words)) | rest)
        plain.append({"role": role, "content": words, **rest})

    system = draw(st.sampled_from(["", "S"]))
    if system and draw(st.booleans()):
        fields = fields | {"system": [{"text": system}]}
    elif system:
        messages.append({"role": "developer", "content": system})
    plain += [{"role": "system", "content": system}] if system else []
    for _ in range(draw(st.integers(1, 3))):
        add("user", "u" + draw(WORDS) + "u")
        while has_tools and draw(st.booleans()):
            count = draw(st.integers(1, 2))
            calls = [{"id": f"call1234{n}", "type": "function", "function": {"name": "f", "arguments": draw(ARGUMENTS)}}
                     for n in range(count)]  # fmt: skip
            add("assistant", draw(st.sampled_from(["", "c" + draw(WORDS) + "c"])), tool_calls=calls)
            for call in calls:
                add("tool", "r" + draw(WORDS) + "r", tool_call_id=call["id"])
        add("assistant", "a" + draw(WORDS) + "a")
    fields = {"messages": messages} | ({"tools": [TOOL]} if has_tools else {}) | fields
    return parse_object(json.dumps(fields)), plain


def is_masked(message: dict[str, Any]) -> bool:
    return (
        "0" in (message.get("weight"),) or "false" in (message.get("loss"), message.get("train")) or "mask" in message
    )


def expected_turn(name: str, plain: list[dict[str, Any]], index: int, tools: Any) -> str:
    """What is trained of a turn: what the template writes after the prompt, up to the turn's closing marker."""
    whole, closed = (reference(name, shown, tools) for shown in (plain, plain[: index + 1]))
    prompt = reference(name, plain[:index], tools, generation=True)
    assert whole.startswith(prompt)
    if whole.startswith(closed):
        return closed[len(prompt) :].rstrip("\n")
    end = len(closed.removesuffix("<|return|>"))  # gpt-oss closes the last answer otherwise
    assert whole.startswith("<|end|>", end)
    return whole[len(prompt) : end] + "<|end|>"


@pytest.mark.parametrize("name", ["chatml", "llama-3", *WITH_TOOLS])
def test_any_conversation_is_trained_as_the_rules_say(name: str) -> None:
    tokenizer = build(TEMPLATES[name])

    @settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(conversations(has_tools=name in WITH_TOOLS), st.sampled_from(["assistant", "last", "all"]))
    def check(generated: tuple[dict[str, Any], list[dict[str, Any]]], turns: str) -> None:
        check_conversation(name, tokenizer, *generated, turns)

    check()


def check_conversation(
    name: str, tokenizer: Tokenizer, fields: dict[str, Any], plain: list[dict[str, Any]], turns: str
) -> None:
    chat, tools = chat_of(tokenizer), [TOOL] if "tools" in fields else None
    calls = [message for message in plain if message.get("tool_calls")]
    several = any(len(message["tool_calls"]) > 1 for message in calls) and name not in SEVERAL_CALLS
    beside = any(message["content"] for message in calls) and name not in TEXT_BESIDE_CALLS
    if several or beside:
        with pytest.raises(ChatError):
            example_of(chat, fields, turns)
        return
    example = example_of(chat, fields, turns)
    for message in calls:
        if name == "deepseek-v3-tools":
            message["content"] = None
            for call in message["tool_calls"]:
                call["function"]["arguments"] = json.dumps(call["function"]["arguments"], ensure_ascii=False)
    assert text_of(example) == reference(name, plain, tools), "the template's own rendering"
    beside_list = len(plain) - len(fields["messages"])
    sources: list[dict[str, Any]] = [{}] * beside_list + fields["messages"]
    answers = [index for index, message in enumerate(plain) if message["role"] == "assistant"]
    unmasked = [index for index in (answers[-1:] if turns == "last" else answers) if not is_masked(sources[index])]
    expected = [expected_turn(name, plain, index, tools) for index in unmasked]
    ((ids, has_loss),) = tokenizer.encode_examples([example])
    assert tokenizer.show(ids[has_loss]) == "".join(expected)
    assert trained(example) == expected
    users = [index for index, message in enumerate(plain) if message["role"] == "user"]
    spoken = [piece.text[start:end] for piece in example.pieces for start, end in piece.user_spans]
    said = [plain[index]["content"] for index in users if turns == "all" and not is_masked(sources[index])]
    assert [text[: len(words)] for text, words in zip(spoken, said, strict=True)] == said
    render = prompt_renderer({"kind": "chat"}, tokenizer, raw=False)
    for index in unmasked:
        asking = fields | {"messages": fields["messages"][: index - beside_list]}
        prompt = tokenizer.prompt_ids(render(asking))
        assert ids[: len(prompt)].tolist() == prompt, "the served prompt is the trained one"
    unread = {"messages[]." + key for message in sources for key in message.keys() & {"score", "annotator"}}
    unread |= {key for key in ("id",) if key in fields}
    unread |= {key for key in chat.unread_keys(read_conversation(fields)) if key.startswith("messages[].tool_call")}
    assert chat.unread_keys(read_conversation(fields)) == unread
