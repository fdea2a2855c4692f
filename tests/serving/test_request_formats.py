"""Every request format is recognised by its keys, and an invalid request gets a one-line error."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from luthier.serving.errors import InvocationError
from luthier.serving.requests import InvocationRequest, Prompt, RequestFormat, as_stream, read_request

TALK = [{"role": "user", "content": "hi"}]


def read(body: Any, content_type: str = "application/json") -> InvocationRequest:
    return read_request(content_type, body if isinstance(body, bytes) else json.dumps(body).encode())


@pytest.mark.parametrize(
    ("body", "form", "kinds", "listed"),
    [
        ({"inputs": "a"}, RequestFormat.INPUTS, ["text"], False),
        ({"inputs": ["a", "b"]}, RequestFormat.INPUTS, ["text", "text"], True),
        ({"inputs": {"x": "a"}}, RequestFormat.INPUTS, ["fields"], False),
        ({"inputs": [{"x": "a"}, {"x": "b"}]}, RequestFormat.INPUTS, ["fields", "fields"], True),
        ({"inputs": [TALK]}, RequestFormat.DIALOGS, ["messages"], True),
        ({"fields": {"x": "a"}}, RequestFormat.INPUTS, ["fields"], False),
        ({"fields": [{"x": "a"}]}, RequestFormat.INPUTS, ["fields"], True),
        ({"messages": TALK}, RequestFormat.MESSAGES, ["messages"], False),
        ({"text_inputs": "a"}, RequestFormat.TEXT_INPUTS, ["text"], False),
        ({"text_inputs": ["a", "b"]}, RequestFormat.TEXT_INPUTS, ["text", "text"], True),
    ],
)
def test_forms(body: Any, form: RequestFormat, kinds: list[str], listed: bool) -> None:
    request = read(body)
    assert (request.format, [prompt.kind for prompt in request.prompts], request.is_list) == (form, kinds, listed)


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-text", "Text/Plain; charset=UTF-8"])
def test_a_bare_text_is_the_prompt(content_type: str) -> None:
    request = read("grün {\n".encode(), content_type)
    assert (request.format, request.prompts) == (RequestFormat.TEXT, (Prompt("text", "grün {\n", "the body"),))


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
        (b'{"inputs": "a", "inputs": "b"}', "duplicate key 'inputs'"),
        (b'{"inputs": "a", "parameters": {"temperature": NaN}}', "NaN is not JSON"),
        (b"[" * 100_000, "the body: "),
        ([1], "expected a JSON object, found a list"),
        ({}, "expected exactly one of inputs, messages, fields, text_inputs, found none of them"),
        ({"input": "a"}, "did you mean 'inputs'"),
        ({"inputs": "a", "messages": []}, "found inputs and messages"),
        ({"inputs": "a", "parameter": {}}, "parameter: unknown key; did you mean 'parameters'"),
        ({"inputs": "a", "max_new_tokens": 3}, "max_new_tokens: unknown key; known keys: inputs, parameters, stre"),
        ({"inputs": 5}, "inputs: a number or boolean: expected a string"),
        ({"inputs": None}, "inputs: null: expected a string"),
        ({"inputs": []}, "inputs: expected at least one prompt, found an empty list"),
        ({"inputs": ["a", {"x": "y"}]}, "inputs: expected a list of strings, of objects"),
        ({"inputs": ["a", 1]}, "inputs: expected a list of strings, of objects"),
        ({"fields": "a"}, "fields: expected an object with a row's fields"),
        ({"fields": []}, "fields: expected an object with a row's fields"),
        ({"text_inputs": 1}, "text_inputs: expected a string"),
        ({"text_inputs": "a", "max_lenght": 1}, "max_lenght: unknown parameter; did you mean 'max_length'"),
        ({"text_inputs": "a", "details": True}, "details: not supported with text_inputs"),
        ({"inputs": [TALK], "parameters": {"return_full_text": True}}, "return_full_text: not supported for"),
        ({"inputs": ["a"] * 1_025}, "inputs: 1,025 prompts; expected at most 1,024 per request"),
        ({"fields": [{}] * 1_025}, "fields: 1,025 prompts"),
        ({"text_inputs": ["a"] * 1_025}, "text_inputs: 1,025 prompts"),
        ({"inputs": "a", "stream": 1}, "stream: 1: expected true or false"),
        ({"messages": TALK, "max_tokens": 0}, "max_tokens: 0: expected an integer of at least 1"),
        ({"messages": TALK, "max_tokens": 1, "max_completion_tokens": 1}, "an alias of max_tokens"),
        ({"messages": TALK, "temperature": -1}, "temperature: -1: expected a number of at least 0"),
        ({"messages": TALK, "functions": []}, "functions: unknown key"),
        ({"messages": TALK, "tool_choice": "required"}, 'tool_choice: expected "auto"'),
        ({"messages": TALK, "model": 5}, "model: a number or boolean: expected a string"),
        ({"messages": TALK, "n": 2}, "n: 2: greedy decoding returns one completion; set temperature above 0"),
    ],
)  # fmt: skip
def test_what_cannot_be_understood(body: Any, line: str) -> None:
    with pytest.raises(InvocationError, match=line) as caught:
        read(body)
    assert (caught.value.status, caught.value.error_type) == (400, "validation")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content_type", "line"),
    [
        ("text/csv", "Content-Type: text/csv: expected application/json, or text/plain for a prompt"),
        ("application/x-npy", "expected application/json"),
        ("application/json; charset=latin-1", "expected UTF-8"),
    ],
)
def test_other_types_are_refused(content_type: str, line: str) -> None:
    with pytest.raises(InvocationError, match=line) as caught:
        read(b"a,b", content_type)
    assert caught.value.status == 415


def test_a_bare_text_is_not_empty() -> None:
    with pytest.raises(InvocationError, match="the body: empty"):
        read(b"", "text/plain")


def test_the_messages_apis_names() -> None:
    request = read(
        {"messages": TALK, "model": "any", "max_tokens": 5, "temperature": 0.5, "top_p": 0.9, "stop": "x", "seed": 3,
         "n": 2, "logprobs": True, "stream": False}
    )  # fmt: skip
    found = request.parameters
    assert (found.max_new_tokens, found.temperature, found.top_p, found.stop) == (5, 0.5, 0.9, ("x",))
    assert (found.seed, found.num_return_sequences, found.details, request.stream) == (3, 2, True, False)
    assert read({"messages": TALK, "temperature": 0}).parameters.is_sampling is False


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ({"inputs": ["a", "b"]}, "a stream holds one completion"),
        (
            {"inputs": "a", "parameters": {"do_sample": True, "num_return_sequences": 2}},
            "a stream holds one completion",
        ),
        ({"inputs": "a", "parameters": {"num_beams": 2}}, "num_beams"),
        (
            {"inputs": "a", "parameters": {"decoder_input_details": True}},
            "decoder_input_details: not supported in",
        ),
    ],
)
def test_what_no_stream_can_tell(body: Any, line: str) -> None:
    with pytest.raises(InvocationError, match=line):
        as_stream(read(body))
    assert as_stream(read({"inputs": ["a"]})).stream is True


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
        refused: InvocationError | None = None
        try:
            assert read_request(content_type, body).prompts
        except InvocationError as refusal:
            refused = refusal
        assert refused is None or (refused.status == 400 and "\n" not in refused.body()["error"])
