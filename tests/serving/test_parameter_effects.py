"""Each parameter has its effect."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import Any

import pytest
from serving.endpoints import Endpoint

from luthier.serving.parameters import PARAMETERS

PROMPT = "Once upon a time"
# Parameter -> (what both requests have, what the second has as well).
EFFECTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "max_new_tokens": ({}, {"max_new_tokens": 3}),
    "max_length": ({}, {"max_length": 7}),
    "do_sample": ({"seed": 1}, {"do_sample": True}),
    "temperature": ({"seed": 1, "do_sample": True}, {"temperature": 3.0}),
    "top_k": ({"seed": 1, "temperature": 3.0}, {"top_k": 1}),
    "top_p": ({"seed": 1, "temperature": 3.0}, {"top_p": 0.01}),
    "seed": ({"seed": 1, "temperature": 2.0}, {"seed": 2}),
    "repetition_penalty": ({}, {"repetition_penalty": 2.5}),
    "num_beams": ({"max_new_tokens": 40}, {"num_beams": 4}),
    "stop": ({}, {"stop": ["."]}),
    "truncate": ({}, {"truncate": 1}),
    "return_full_text": ({}, {"return_full_text": True}),
    "parse_special_tokens": ({}, {"parse_special_tokens": True}),
}
PROMPTS = {
    "parse_special_tokens": "<|im_start|>user\nHello!<|im_end|>\n<|im_start|>assistant\n",
}
ELSEWHERE = {  # tested by name below, or where they are proved on the weights
    "max_time", "no_repeat_ngram_size", "num_return_sequences", "early_stopping", "details", "decoder_input_details",
}  # fmt: skip


def test_every_parameter_is_tested() -> None:
    assert EFFECTS.keys() | ELSEWHERE == PARAMETERS.keys()


@pytest.mark.parametrize("name", EFFECTS)
def test_effect(tiny: Endpoint, name: str) -> None:
    common, more = EFFECTS[name]
    prompt = PROMPTS.get(name, PROMPT)
    common = {"max_new_tokens": 16} | common
    if name in ("max_new_tokens", "max_length"):
        common = {}
    before = tiny.text(prompt, **common)
    assert tiny.text(prompt, **common) == before
    assert tiny.text(prompt, **(common | more)) != before


def test_no_repeated_ngrams(t5: Endpoint) -> None:
    parameters = {"max_new_tokens": 60, "details": True}
    pairs = {}
    for more in ({}, {"no_repeat_ngram_size": 2}):
        (result,) = t5.answer({"inputs": "one two", "parameters": parameters | more})
        ids = [token["id"] for token in result["details"]["tokens"]]
        pairs[len(more)] = list(pairwise(ids))
    assert len(set(pairs[0])) < len(pairs[0])
    assert len(set(pairs[1])) == len(pairs[1])


def count(endpoint: Endpoint, prompt: str, **parameters: Any) -> int:
    (result,) = endpoint.answer({"inputs": prompt, "parameters": {"details": True} | parameters})
    return int(result["details"]["generated_tokens"])


def test_lengths_are_exact(tiny: Endpoint, t5: Endpoint) -> None:
    assert count(tiny, PROMPT, max_new_tokens=3) == 3
    assert count(tiny, PROMPT, max_length=7) == 3  # four of the prompt
    assert count(t5, "a cat", max_new_tokens=3, stop=[]) <= 3
    assert count(t5, "a cat", max_length=7) <= 6  # the decoder's start token is one


def test_a_low_temperature_one_candidate_and_a_small_share_are_greedy(tiny: Endpoint) -> None:
    greedy = tiny.text(PROMPT, max_new_tokens=16)
    for how in ({"temperature": 1e-6}, {"top_k": 1}, {"top_p": 1e-6}, {"do_sample": False, "temperature": 9.0}):
        assert tiny.text(PROMPT, max_new_tokens=16, **how) == greedy


def test_without_a_seed_draws_differ_and_the_seed_is_told(tiny: Endpoint) -> None:
    parameters = {"max_new_tokens": 12, "temperature": 3.0, "details": True}
    result = [tiny.answer({"inputs": PROMPT, "parameters": parameters})[0] for _ in range(3)]
    assert len({one["generated_text"] for one in result}) > 1
    again = tiny.text(PROMPT, max_new_tokens=12, temperature=3.0, seed=result[0]["details"]["seed"])
    assert again == result[0]["generated_text"]
    (greedy,) = tiny.answer({"inputs": PROMPT, "parameters": {"details": True, "max_new_tokens": 1}})
    assert greedy["details"]["seed"] is None


def test_stop_strings_and_control_tokens_stop(tiny: Endpoint) -> None:
    whole = tiny.text(PROMPT, max_new_tokens=40)
    for stops in (["."], ["She", "zzz"], "there", ["lived near the"]):
        parameters = {"max_new_tokens": 40, "stop": stops, "details": True}
        (result,) = tiny.answer({"inputs": PROMPT, "parameters": parameters})
        place = min(whole.index(stop) for stop in ([stops] if isinstance(stops, str) else stops) if stop in whole)
        assert result["generated_text"] == whole[:place]
        assert result["details"]["finish_reason"] == "stop_sequence"
        assert result["details"]["generated_tokens"] < 40
        streamed = tiny.stream({"inputs": PROMPT, "parameters": {"max_new_tokens": 40, "stop": stops}}).events
        assert "".join(event["token"]["text"] for event in streamed) == whole[:place]
        beams = tiny.text(PROMPT, max_new_tokens=40, stop=stops, num_beams=2)
        assert not any(stop in beams for stop in stops)
    talk = {"messages": [{"role": "user", "content": "Hello!"}]}
    ended = tiny.answer(talk | {"stop": ["<|endoftext|>", "<|im_start|>"]})["choices"][0]
    assert ended["message"]["content"]


def test_a_control_token_that_ends_no_text_ends_one_where_it_is_asked_to(t5: Endpoint) -> None:
    """A random T5 writes any token: one of its control tokens, asked for as a stop, is what it stops at."""
    parameters = {"max_new_tokens": 60, "details": True, "temperature": 50.0}
    for seed in range(100):
        (free,) = t5.answer({"inputs": "a", "parameters": parameters | {"seed": seed}})
        places = [place for place, token in enumerate(free["details"]["tokens"]) if token["id"] == 2]  # <|im_end|>
        if places and places[0]:
            break
    with_stop = parameters | {"seed": seed, "stop": ["<|im_end|>"]}
    stopped = t5.answer({"inputs": "a", "parameters": with_stop})[0]["details"]
    assert stopped["generated_tokens"] == places[0] + 1
    assert stopped["tokens"][-1]["special"] is True
    assert stopped["finish_reason"] == "eos_token"


def test_max_time(tiny: Endpoint) -> None:
    began = time.monotonic()
    written = count(tiny, PROMPT, max_new_tokens=1500, temperature=5.0, max_time=0.15)
    assert 1 <= written < 1500
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("early", [False, True])
def test_beams_and_their_answers(tiny: Endpoint, t5: Endpoint, early: bool) -> None:
    parameters = {"max_new_tokens": 8, "num_beams": 3, "num_return_sequences": 3, "early_stopping": early}
    for endpoint in (tiny, t5):
        result = endpoint.answer({"inputs": "The dog", "parameters": parameters | {"details": True}})
        assert len(result) == 3
        for one in result:
            assert "".join(token["text"] for token in one["details"]["tokens"]) == one["generated_text"]
            assert all(token["logprob"] <= 0 for token in one["details"]["tokens"])
    drawn = [tiny.text("The dog", num_beams=2, do_sample=True, temperature=3.0, seed=seed, max_new_tokens=8)
             for seed in (1, 1, 2)]  # fmt: skip
    assert drawn[0] == drawn[1] != drawn[2]


def test_an_encoder_decoders_prompt_is_its_decoders(t5: Endpoint) -> None:
    (result,) = t5.answer({"inputs": "a cat", "parameters": {"max_new_tokens": 2, "decoder_input_details": True}})
    (start,) = result["details"]["prefill"]
    assert (start["id"], start["logprob"]) == (3, None)


def test_the_t5_answers_every_form(t5: Endpoint) -> None:
    limit = {"max_new_tokens": 6}
    expected = t5.text("a cat", **limit)
    assert t5.answer({"text_inputs": "a cat", "max_length": 7}) == {"generated_texts": [expected]}
    assert t5.answer({"fields": {"prompt": "a cat"}, "parameters": limit}) == [{"generated_text": expected}]
    assert t5.stream({"inputs": "a cat", "parameters": limit}).events[-1]["generated_text"] == expected
    assert t5.request("GET", "/ping").json["model"] == "small-t5"
