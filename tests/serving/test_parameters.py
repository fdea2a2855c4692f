"""Parameters are validated strictly; every error is one line: where, what was sent, what was expected."""

from __future__ import annotations

import json
from typing import Any

import pytest

from luthier.data.records import parse_value
from luthier.serving.errors import InvocationError
from luthier.serving.parameters import PARAMETERS, GenerationParameters, read_parameters


def read(values: Any) -> GenerationParameters:
    return read_parameters(parse_value(json.dumps(values)))


def test_what_fits_is_read() -> None:
    values = {
        "max_new_tokens": 5, "max_length": 9, "max_time": 2, "do_sample": True, "temperature": 0.5, "top_k": 3,
        "top_p": 1, "seed": 2**63 - 1, "repetition_penalty": 1.2, "no_repeat_ngram_size": 2, "num_beams": 4,
        "num_return_sequences": 2, "early_stopping": True, "stop": ["a", "b"], "truncate": 7,
        "return_full_text": True, "details": False, "decoder_input_details": True, "parse_special_tokens": False,
    }  # fmt: skip
    assert values.keys() == PARAMETERS.keys()
    parsed = read(values)
    assert {name: getattr(parsed, name) for name in values} == values | {"stop": ("a", "b")}
    assert isinstance(parsed.temperature, float)


def test_null_and_nothing_are_nothing() -> None:
    assert read(None) == read({}) == read(dict.fromkeys(PARAMETERS)) == GenerationParameters()
    assert read({"stop": []}) == GenerationParameters()
    assert read({"stop": "###"}).stop == ("###",)


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("temperature", 0, "parameters.temperature: 0: expected a number above 0"),
        ("temperature", -1.5, "parameters.temperature: -1.5: expected a number above 0"),
        ("temperature", "0.5", 'parameters.temperature: "0.5": expected a number above 0'),
        ("top_p", 1.01, "parameters.top_p: 1.01: expected a number above 0 and at most 1"),
        ("top_p", 0, "parameters.top_p: 0: expected a number above 0 and at most 1"),
        ("top_k", 0, "parameters.top_k: 0: expected an integer of at least 1"),
        ("top_k", 2.0, "parameters.top_k: 2.0: expected an integer of at least 1"),
        ("top_k", True, "parameters.top_k: true: expected an integer of at least 1"),
        ("do_sample", 1, "parameters.do_sample: 1: expected true or false"),
        ("do_sample", "true", 'parameters.do_sample: "true": expected true or false'),
        ("seed", -1, "parameters.seed: -1: expected an integer of at least 0"),
        ("seed", 2**63, f"parameters.seed: {2**63}: expected an integer of at least 0"),
        ("no_repeat_ngram_size", 1, "parameters.no_repeat_ngram_size: 1: expected an integer of at least 2"),
        ("num_beams", 65, "parameters.num_beams: 65: expected an integer from 1 to 64"),
        ("max_new_tokens", 0, "parameters.max_new_tokens: 0: expected an integer of at least 1"),
        ("stop", [""], 'parameters.stop: [""]: expected a list of at most 16 strings of 1 to 1,000 characters'),
        ("stop", 5, "parameters.stop: 5: expected a list of at most 16 strings of 1 to 1,000 characters"),
        ("stop", ["a"] * 17, "expected a list of at most 16 strings"),
        ("stop", [5], "expected a list of at most 16 strings"),
        ("temperatur", 1, "parameters.temperatur: unknown parameter; did you mean 'temperature'?"),
        ("tail_free", 1, "parameters.tail_free: unknown parameter; known parameters: max_new_tokens, "),
        ("presence_penalty", 0.5, "parameters.presence_penalty: 0.5: not supported here; expected 0, or leave it out"),
        ("response_format", {"type": "json_object"}, 'expected {"type": "text"}, or leave it out'),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(name: str, value: Any, line: str) -> None:
    with pytest.raises(InvocationError) as caught:
        read({name: value})
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.status == 400


def test_parameters_that_ask_for_nothing_are_taken() -> None:
    asked = parse_value(
        '{"presence_penalty": 0, "frequency_penalty": 0.0, "response_format": {"type": "text"}, "n": 1,'
        ' "logit_bias": {}, "watermark": false, "stream": null, "max_new_tokens": 3}'
    )
    assert read_parameters(asked) == GenerationParameters(max_new_tokens=3)


@pytest.mark.parametrize("text", ['{"temperature": 1e999}', '{"top_k": ' + "9" * 5000 + "}", '{"seed": [[]]}'])
def test_numbers_without_measure_are_refused(text: str) -> None:
    with pytest.raises(InvocationError, match="expected a"):
        read_parameters(parse_value(text))


def test_parameters_are_an_object() -> None:
    with pytest.raises(InvocationError, match=r"parameters: \[1\]: expected an object"):
        read_parameters([1])


@pytest.mark.parametrize(
    ("values", "samples"),
    [
        ({}, False), ({"seed": 1}, False), ({"temperature": 0.5}, True), ({"top_k": 5}, True), ({"top_p": 0.5}, True),
        ({"do_sample": True}, True), ({"do_sample": False, "temperature": 0.5, "top_p": 0.1}, False),
    ],
)  # fmt: skip
def test_what_is_said_of_drawing_asks_for_it(values: dict[str, Any], samples: bool) -> None:
    assert read(values).is_sampling is samples


@pytest.mark.parametrize(
    ("values", "line"),
    [
        (
            {"num_return_sequences": 2},
            "greedy decoding returns one sequence; set do_sample to true, or num_beams to at least 2",
        ),
        ({"num_return_sequences": 3, "num_beams": 2}, r"num_return_sequences: 3: expected at most num_beams \(2\)"),
    ],
)
def test_combinations_that_cannot_be_had(values: dict[str, Any], line: str) -> None:
    with pytest.raises(InvocationError, match=line):
        read(values)
    assert read({"num_return_sequences": 3, "do_sample": True}).num_return_sequences == 3
    assert read({"num_return_sequences": 2, "num_beams": 2}).num_beams == 2


def test_names_that_a_form_has_no_place_for_say_why() -> None:
    with pytest.raises(InvocationError, match=r"parameters\.details: not here"):
        read_parameters({"details": None}, excluded={"details": "not here"})
