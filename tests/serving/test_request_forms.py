"""Every form of a body is told by what it holds, and what cannot be understood is refused in one line."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from luthier.serving.refusals import Refusal
from luthier.serving.requests import Asked, Form, Prompt, check_streamable, read_request

TALK = [{"role": "user", "content": "hi"}]


def read(body: Any, content_type: str = "application/json") -> Asked:
    return read_request(content_type, body if isinstance(body, bytes) else json.dumps(body).encode())


@pytest.mark.parametrize(
    ("body", "form", "kinds", "listed"),
    [
        ({"inputs": "a"}, Form.INPUTS, ["text"], False),
        ({"inputs": ["a", "b"]}, Form.INPUTS, ["text", "text"], True),
        ({"inputs": {"x": "a"}}, Form.INPUTS, ["fields"], False),
        ({"inputs": [{"x": "a"}, {"x": "b"}]}, Form.INPUTS, ["fields", "fields"], True),
        ({"inputs": [TALK]}, Form.DIALOGS, ["messages"], True),
        ({"fields": {"x": "a"}}, Form.INPUTS, ["fields"], False),
        ({"fields": [{"x": "a"}]}, Form.INPUTS, ["fields"], True),
        ({"messages": TALK}, Form.MESSAGES, ["messages"], False),
        ({"text_inputs": "a"}, Form.TEXT_INPUTS, ["text"], False),
        ({"text_inputs": ["a", "b"]}, Form.TEXT_INPUTS, ["text", "text"], True),
    ],
)
def test_forms(body: Any, form: Form, kinds: list[str], listed: bool) -> None:
    asked = read(body)
    assert (asked.form, [prompt.kind for prompt in asked.prompts], asked.listed) == (form, kinds, listed)


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-text", "Text/Plain; charset=UTF-8"])
def test_a_bare_text_is_the_prompt(content_type: str) -> None:
    asked = read("grün {\n".encode(), content_type)
    assert (asked.form, asked.prompts) == (Form.TEXT, (Prompt("text", "grün {\n", "the body"),))


@pytest.mark.parametrize("content_type", ["", "application/octet-stream", "application/json; charset=utf-8"])
def test_json_is_what_a_client_sends_that_names_no_type(content_type: str) -> None:
    assert read({"inputs": "a"}, content_type).prompts[0].value == "a"


def test_a_number_in_a_row_stays_as_it_was_written() -> None:
    assert read(b'{"fields": {"stars": 1.10, "good": true}}').prompts[0].value == {"stars": "1.10", "good": "true"}


@pytest.mark.parametrize(
    ("body", "line"),
    [
        (b"", "the body: not JSON"),
        (b'{"inputs": ', "the body: not JSON: .* at character"),
        (b'{"inputs": "\xff"}', "the body: not UTF-8 at byte 12"),
        (b'{"inputs": "\\ud800"}', "the body: .*surrogate"),
        (b'{"inputs": "a", "inputs": "b"}', "the key 'inputs' stands twice"),
        (b'{"inputs": "a", "parameters": {"temperature": NaN}}', "NaN is not JSON"),
        (b"[" * 100_000, "the body: "),
        ([1], "expected a JSON object, found a list"),
        ({}, "expected one of inputs, messages, fields, text_inputs; it has none of them"),
        ({"input": "a"}, "did you mean 'inputs'"),
        ({"inputs": "a", "messages": []}, "it has inputs and messages"),
        ({"inputs": "a", "parameter": {}}, "parameter: unknown key; did you mean 'parameters'"),
        ({"inputs": "a", "max_new_tokens": 3}, "max_new_tokens: unknown key; known beside inputs are parameters, stre"),
        ({"inputs": 5}, "inputs: a number or boolean: expected a text"),
        ({"inputs": None}, "inputs: null: expected a text"),
        ({"inputs": []}, "inputs: an empty list"),
        ({"inputs": ["a", {"x": "y"}]}, "inputs: expected a list of texts, of objects"),
        ({"inputs": ["a", 1]}, "inputs: expected a list of texts, of objects"),
        ({"fields": "a"}, "fields: expected an object with a row's fields"),
        ({"fields": []}, "fields: expected an object with a row's fields"),
        ({"text_inputs": 1}, "text_inputs: expected a text"),
        ({"text_inputs": "a", "max_lenght": 1}, "max_lenght: unknown parameter; did you mean 'max_length'"),
        ({"text_inputs": "a", "details": True}, "details: answers of this form carry no details"),
        ({"inputs": [TALK], "parameters": {"return_full_text": True}}, "return_full_text: answers to a conversation"),
        ({"inputs": ["a"] * 1_025}, "inputs: 1,025 of them: a request may hold 1,024"),
        ({"fields": [{}] * 1_025}, "fields: 1,025 of them"),
        ({"text_inputs": ["a"] * 1_025}, "text_inputs: 1,025 of them"),
        ({"inputs": "a", "stream": 1}, "stream: 1: expected true or false"),
        ({"messages": TALK, "max_tokens": 0}, "max_tokens: 0: expected an integer from 1 up"),
        ({"messages": TALK, "max_tokens": 1, "max_completion_tokens": 1}, "max_tokens is its other name"),
        ({"messages": TALK, "temperature": -1}, "temperature: -1: expected a number from 0 up"),
        ({"messages": TALK, "tools": []}, "tools: unknown key"),
        ({"messages": TALK, "model": 5}, "model: a number or boolean: expected a name"),
        ({"messages": TALK, "n": 2}, "n: 2: there is one likeliest answer; set temperature above 0"),
    ],
)  # fmt: skip
def test_what_cannot_be_understood(body: Any, line: str) -> None:
    with pytest.raises(Refusal, match=line) as caught:
        read(body)
    assert (caught.value.status, caught.value.kind) == (400, "validation")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content_type", "line"),
    [
        ("text/csv", "Content-Type: text/csv: expected application/json, or text/plain for a bare prompt"),
        ("application/x-npy", "expected application/json"),
        ("application/json; charset=latin-1", "expected UTF-8"),
    ],
)
def test_other_types_are_refused(content_type: str, line: str) -> None:
    with pytest.raises(Refusal, match=line) as caught:
        read(b"a,b", content_type)
    assert caught.value.status == 415


def test_a_bare_text_is_not_empty() -> None:
    with pytest.raises(Refusal, match="the body: empty"):
        read(b"", "text/plain")


def test_the_messages_apis_names() -> None:
    asked = read(
        {"messages": TALK, "model": "any", "max_tokens": 5, "temperature": 0.5, "top_p": 0.9, "stop": "x", "seed": 3,
         "n": 2, "logprobs": True, "stream": False}
    )  # fmt: skip
    found = asked.parameters
    assert (found.max_new_tokens, found.temperature, found.top_p, found.stop) == (5, 0.5, 0.9, ("x",))
    assert (found.seed, found.num_return_sequences, found.details, asked.stream) == (3, 2, True, False)
    assert read({"messages": TALK, "temperature": 0}).parameters.samples is False


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ({"inputs": ["a", "b"]}, "a stream tells one answer"),
        ({"inputs": "a", "parameters": {"do_sample": True, "num_return_sequences": 2}}, "a stream tells one answer"),
        ({"inputs": "a", "parameters": {"num_beams": 2}}, "num_beams"),
        ({"inputs": "a", "parameters": {"decoder_input_details": True}}, "decoder_input_details: not in a stream"),
    ],
)
def test_what_no_stream_can_tell(body: Any, line: str) -> None:
    with pytest.raises(Refusal, match=line):
        check_streamable(read(body))
    assert check_streamable(read({"inputs": ["a"]})).stream is True


NAMES = st.sampled_from(["inputs", "fields", "messages", "text_inputs", "parameters", "stream", "temperature", "stop",
                         "max_tokens", "n", "role", "content", "seed", "top_k", "details"])  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["user", "a"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES | st.text(max_size=3), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=400, deadline=None)
@given(st.dictionaries(NAMES, VALUES, max_size=4).map(lambda body: json.dumps(body).encode()) | st.binary(max_size=30))
@example(b'{"inputs": [[[]]], "parameters": {"stop": [[]]}}')
def test_whatever_is_sent_is_understood_or_refused_in_one_line(body: bytes) -> None:
    for content_type in ("application/json", "text/plain"):
        refused: Refusal | None = None
        try:
            assert read_request(content_type, body).prompts
        except Refusal as refusal:
            refused = refusal
        assert refused is None or (refused.status == 400 and "\n" not in refused.reply()["error"])
