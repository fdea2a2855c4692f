"""Requests as rows: prompts as in training, token limits, seeds; batches split by memory or by an error."""

from __future__ import annotations

import copy
import io
import json
from typing import Any

import pytest
import torch
from data.test_chat_templates import TEMPLATES
from finished_runs import FinishedRuns
from rich.console import Console
from serving.endpoints import Endpoint, listening
from serving.vocabularies import sentencepiece_like
from tiny_models import write_model

from luthier.catalog.locate import EMBEDDED
from luthier.data.chat import ChatTemplate
from luthier.data.conversation import read_conversation
from luthier.data.records import parse_object
from luthier.evaluation.generate import print_generations
from luthier.serving import model as model_module
from luthier.serving.errors import InvocationError
from luthier.serving.model import DEFAULT_NEW_TOKENS, ServedModel
from luthier.serving.requests import read_request
from luthier.serving.row import BatchRow
from luthier.weights.generate import generate
from luthier.weights.resolved_model import ResolvedModel, resolve_model
from luthier.weights.sample import StreamedPrompt, generate_streaming

MARKERS = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]
FIELDS = {"instruction": "good dog", "context": "a cat sat on the mat <|endoftext|> naïve 猫"}


def rows_of(served: ServedModel, body: Any) -> list[BatchRow]:
    return served.prepare_rows(read_request("application/json", json.dumps(body).encode()))


def generated(capsys: pytest.CaptureFixture[str], target: str, text: str, **more: Any) -> str:
    """What `luthier generate` prints for a text."""
    request = {"target": target, "text": text, "max_new_tokens": 24, "device": "cpu", "json": True} | more
    print_generations(request, Console(file=io.StringIO()))
    return str(json.loads(capsys.readouterr().out)["generated_text"])


def test_a_rows_fields_are_answered_as_luthier_generate_does(
    tuned: Endpoint, finished: FinishedRuns, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(finished.get().folder.root)
    expected = generated(capsys, run, json.dumps(FIELDS))
    limits = {"max_new_tokens": 24}
    assert tuned.text(FIELDS, **limits) == expected
    assert tuned.answer({"fields": FIELDS, "parameters": limits}) == [{"generated_text": expected}]
    both = tuned.answer({"fields": [FIELDS, {"instruction": "a", "context": "b"}], "parameters": limits})
    assert both[0]["generated_text"] == expected
    assert both[1]["generated_text"] == generated(capsys, run, '{"instruction": "a", "context": "b"}')


def test_raw_inputs_are_the_whole_prompt_and_the_templates_text_gives_the_templates_answer(
    tuned: Endpoint, finished: FinishedRuns, capsys: pytest.CaptureFixture[str]
) -> None:
    run = finished.get().folder
    raw = generated(capsys, str(run.root), "good dog", raw=True)
    assert tuned.text("good dog", max_new_tokens=24) == raw
    plain = {"instruction": "good dog", "context": "a cat"}
    template = resolve_model(str(run.root), lambda text: None).provenance["template"]
    by_hand = template["prompt"].format(**plain) + template.get("demarcation", "")
    assert tuned.text(by_hand, max_new_tokens=24) == tuned.text(plain, max_new_tokens=24)


def test_many_at_once_are_answered_as_each_alone(tuned: Endpoint) -> None:
    words = ["a", "the cat", "a dog sat on the mat", "one two three " * 5, "red"]
    limits = {"max_new_tokens": 16}
    together = tuned.answer({"inputs": words, "parameters": limits})
    assert [one["generated_text"] for one in together] == [tuned.text(word, **limits) for word in words]


def test_a_conversation_is_rendered_by_the_models_own_template(tiny_model: ServedModel, tiny: Endpoint) -> None:
    talk = [{"role": "user", "content": "Hello! <|im_end|>"}]
    (row,) = rows_of(tiny_model, {"messages": talk})
    chat = tiny_model.tokenizer.chat
    assert chat is not None
    assert list(row.request.prompt_ids) == tiny_model.tokenizer.prompt_ids(chat.render_prompt(talk))
    generation = generate(
        tiny_model.model, [list(row.request.prompt_ids)], stop_ids=tiny_model.tokenizer.stop_ids,
        pad_id=tiny_model.tokenizer.pad_id, max_new_tokens=DEFAULT_NEW_TOKENS,
    )[0]  # fmt: skip
    expected = tiny_model.tokenizer.decode(generation.ids)
    assert tiny.answer({"messages": talk})["choices"][0]["message"]["content"] == expected
    assert tiny.answer({"inputs": [talk]}) == [{"generation": {"role": "assistant", "content": expected}}]
    assert tiny.answer({"fields": {"messages": talk}}) == [{"generated_text": expected}]


def test_conversations_are_read_as_in_training(tiny_model: ServedModel) -> None:
    plain = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello!"}]
    user = {"role": "user", "content": [{"text": "Hello!"}], "weight": 0, "annotations": [], "refusal": None}
    parts = [{"role": "developer", "content": [{"type": "text", "text": "Be "}, {"text": "brief."}]}, user]
    expected, row, dialog = (
        list(rows_of(tiny_model, body)[0].request.prompt_ids)
        for body in ({"messages": plain}, {"messages": parts}, {"inputs": [parts]})
    )
    assert expected == row == dialog
    for message, line in (
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, "is of type 'image_url'"),
        ({"role": "user", "content": "hi", "mood": "good"}, r"not read by .*: 'messages\[\]\.mood'; leave out"),
    ):
        with pytest.raises(InvocationError, match=line):
            rows_of(tiny_model, {"messages": [message]})


def test_tools_are_served_as_trained(tiny_model: ServedModel) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    call = {"id": "call12345", "type": "function", "function": {"name": "f", "arguments": '{"x": "v"}'}}
    talk = [{"role": "user", "content": "Hello!"}, {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "7", "tool_call_id": "call12345"}]  # fmt: skip
    with pytest.raises(InvocationError, match="does not write the row's tools, such as 'f'"):
        rows_of(tiny_model, {"messages": talk[:1], "tools": [tool]})
    served, chat = copy.copy(tiny_model), ChatTemplate(TEMPLATES["qwen3-tools"]["template"], {}, MARKERS)
    served.tokenizer = copy.copy(tiny_model.tokenizer)
    served.tokenizer.chat = chat
    (row,) = rows_of(served, {"messages": talk, "tools": [tool], "tool_choice": "auto"})
    fields = parse_object(json.dumps({"messages": [*talk, {"role": "assistant", "content": "7"}], "tools": [tool]}))
    trained = served.tokenizer.encode(chat.example(read_conversation(fields)).pieces)
    ids = list(row.request.prompt_ids)
    assert ids == trained[: len(ids)]
    assert '"arguments": {"x": "v"}' in served.tokenizer.show(ids)


def test_strings_of_control_tokens_are_text_unless_said_otherwise(tiny_model: ServedModel) -> None:
    prompt = "<|im_start|>user"
    (text,) = rows_of(tiny_model, {"inputs": prompt})
    (control,) = rows_of(tiny_model, {"inputs": prompt, "parameters": {"parse_special_tokens": True}})
    assert len(control.request.prompt_ids) < len(text.request.prompt_ids)
    assert (
        tiny_model.tokenizer.show(control.request.prompt_ids)
        == tiny_model.tokenizer.show(text.request.prompt_ids)
        == prompt
    )


def trusting(served: ServedModel) -> ServedModel:
    """The same model, of a run that was trained with parse_special_tokens."""
    provenance = {"settings": {"parse_special_tokens": True}, "kind": "instruction",
                  "template": {"prompt": "{q}", "completion": "{a}"}}  # fmt: skip
    return ServedModel(ResolvedModel(name="x", base=EMBEDDED, provenance=provenance), served.tokenizer, served.model)


def test_a_run_that_trusted_its_rows_trusts_requests(tiny_model: ServedModel) -> None:
    served = trusting(tiny_model)
    for body in ({"inputs": "<|im_start|>"}, {"fields": {"q": "<|im_start|>"}}):
        assert len(rows_of(served, body)[0].request.prompt_ids) == 1
        distrusted = rows_of(served, body | {"parameters": {"parse_special_tokens": False}})
        assert len(distrusted[0].request.prompt_ids) > 1


def test_a_text_begins_once(short: ServedModel) -> None:
    """Where the tokenizer begins each text with a token, a trusted prompt that brings it gets no second one."""
    served = ServedModel(ResolvedModel(name="x", base=EMBEDDED), sentencepiece_like(), short.model)
    trusted = {"parse_special_tokens": True}
    plain, brought, twice, text = (
        list(rows_of(served, {"inputs": inputs, "parameters": more})[0].request.prompt_ids)
        for inputs, more in (("the", trusted), ("<s>the", trusted), ("<s><s>the", trusted), ("<s>the", {}))
    )
    assert (plain[0], plain.count(1)) == (1, 1)
    assert (brought[0], brought.count(1), twice.count(1), text.count(1)) == (1, 1, 2, 1)
    assert len(text) > len(brought)
    (row,) = rows_of(served, {"inputs": "at the inn", "parameters": {"truncate": 3}})
    assert (row.request.prompt_ids[0], len(row.request.prompt_ids)) == (1, 3)
    assert served.tokenizer.decode(row.request.prompt_ids) == "nn"


def small(tmp_path_factory: pytest.TempPathFactory, architecture: str = "llama", **limits: Any) -> ServedModel:
    folder = write_model(tmp_path_factory.mktemp("small") / architecture, architecture, positions=64)
    return ServedModel.load(str(folder), "cpu", lambda text: None, **limits)


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> ServedModel:
    """A model with a context of 64 tokens, a character each."""
    return small(tmp_path_factory)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> ServedModel:
    return small(tmp_path_factory, "t5", context=64)


def max_new_tokens(served: ServedModel, characters: int, **parameters: Any) -> int:
    (row,) = rows_of(served, {"inputs": "z" * characters, "parameters": parameters})
    assert len(row.request.prompt_ids) == characters + len(
        served.tokenizer.suffix_ids if served.model.is_encoder_decoder else []
    )
    return row.request.max_new_tokens


def test_room_of_an_answer(short: ServedModel, pair: ServedModel) -> None:
    assert max_new_tokens(short, 10) == 54
    assert max_new_tokens(short, 10, max_new_tokens=5) == 5
    assert max_new_tokens(short, 10, max_new_tokens=500) == 54
    assert max_new_tokens(short, 10, max_length=30) == 20
    assert max_new_tokens(short, 10, max_length=30, max_new_tokens=5) == 5
    assert max_new_tokens(short, 63) == 1
    assert max_new_tokens(pair, 10) == 64
    assert max_new_tokens(pair, 63, max_length=30) == 29


def test_default_room(tiny_model: ServedModel) -> None:
    assert rows_of(tiny_model, {"inputs": "a"})[0].request.max_new_tokens == DEFAULT_NEW_TOKENS
    assert rows_of(tiny_model, {"inputs": "a", "parameters": {"max_length": 2000}})[0].request.max_new_tokens == 1999


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ({"inputs": "z" * 64}, "inputs: the prompt has 64 tokens; expected 1 to 63; set parameters.trunc"),
        ({"inputs": ["a", "z" * 99]}, r"inputs\[1\]: the prompt has 99 tokens"),
        ({"inputs": ""}, "inputs: the prompt has 0 tokens; expected 1 to 63"),
        (
            {"inputs": "z" * 20, "parameters": {"max_length": 20}},
            "max_length: 20: expected more than the prompt's 20 tokens",
        ),
        (
            {"fields": {"question": "a"}},
            "fields: a row for a model without a template requires the text field 'prompt'",
        ),
        ({"messages": "hi"}, "messages: expected a list of"),
        ({"messages": []}, "messages: a chat row requires 'messages': a list of"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages: message 1 is the tool's, but no assistant's"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "messages: the last message has"),
        ({"inputs": [[{"role": "user", "content": 5}]]}, r"inputs\[0\]: message 1: 'content' must be a string"),
    ],
)
def test_what_cannot_be_rendered_or_does_not_fit(short: ServedModel, body: Any, line: str) -> None:
    with pytest.raises(InvocationError, match=line):
        rows_of(short, body)


def test_a_model_without_a_chat_template_says_so(pair: ServedModel) -> None:
    with pytest.raises(InvocationError, match=r"messages: .* tokenizer has a chat template"):
        rows_of(pair, {"messages": [{"role": "user", "content": "hi"}]})


def test_truncate_keeps_the_end(short: ServedModel) -> None:
    (row,) = rows_of(short, {"inputs": "z" * 99 + "q", "parameters": {"truncate": 9}})
    assert short.tokenizer.decode(row.request.prompt_ids) == "zzzzzzzzq"


def test_seeds_of_several_answers_follow_each_other(tiny: Endpoint) -> None:
    how = {"max_new_tokens": 12, "temperature": 1.5}
    several = tiny.answer({"inputs": "The dog", "parameters": how | {"seed": 5, "num_return_sequences": 3}})
    alone = [tiny.text("The dog", seed=seed, **how) for seed in (5, 6, 7)]
    assert [one["generated_text"] for one in several] == alone
    assert len(set(alone)) == 3
    two = tiny.answer({"inputs": ["The dog", "It was"], "parameters": how | {"seed": 5}})
    assert two[0]["generated_text"] == alone[0]


def test_rows_of_a_batch_stay_within_the_context_together(short: ServedModel) -> None:
    long, brief, beam = (
        rows_of(short, {"inputs": "z" * length, "parameters": {"max_new_tokens": new} | more})[0]
        for length, new, more in ((60, 4, {}), (5, 20, {}), (5, 4, {"num_beams": 2}))
    )
    assert short.can_batch([long])
    assert short.can_batch([brief, brief])
    assert not short.can_batch([long, brief])
    assert not short.can_batch([brief, beam])
    short.batch_tokens, before = 70, short.batch_tokens
    assert short.can_batch([brief, brief])
    assert not short.can_batch([brief, brief, brief])
    short.batch_tokens = before


def run(served: ServedModel, body: Any) -> list[BatchRow]:
    rows = rows_of(served, body)
    served.generate(rows)
    return rows


def test_rows_that_find_no_memory_together_are_answered_in_halves(
    short: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = {"inputs": ["aa", "bbb", "cccc", "d", "ee"], "parameters": {"max_new_tokens": 8, "details": True}}
    expected = [row.completions.result(0) for row in run(short, body)]
    batch_sizes: list[int] = []
    original = generate_streaming

    def scarce(model: Any, lines: Any, pad_id: int) -> None:
        batch_sizes.append(len(lines))
        if len(lines) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        original(model, lines, pad_id)

    monkeypatch.setattr(model_module, "generate_streaming", scarce)
    completions = [row.completions.result(0) for row in run(short, body)]
    assert batch_sizes == [5, 3, 2, 1, 2]
    assert [one[0].text for one in completions] == [one[0].text for one in expected]


def test_tokens_that_were_told_before_memory_ran_out_are_not_told_again(
    short: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    (row, other) = rows_of(short, {"inputs": ["aa", "bb"], "parameters": {"max_new_tokens": 8}})
    heard: list[int] = []
    row.on_token = lambda token, answer: heard.append(token.id)
    original, calls = generate_streaming, list[int]()

    def breaks_off(model: Any, lines: Any, pad_id: int) -> None:
        calls.append(len(lines))
        if len(calls) > 1:
            original(model, lines, pad_id)
            return
        count = 0

        def take(token: int, score: float) -> bool:
            nonlocal count
            count += 1
            if count == 4:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return bool(lines[0].on_token(token, score))

        original(
            model,
            [
                StreamedPrompt(
                    prompt=lines[0].prompt,
                    max_new_tokens=lines[0].max_new_tokens,
                    sampling=lines[0].sampling,
                    on_token=take,
                ),
                lines[1],
            ],
            pad_id,
        )

    monkeypatch.setattr(model_module, "generate_streaming", breaks_off)
    short.generate([row, other])
    assert calls == [2, 1, 1]
    monkeypatch.undo()
    (again,) = run(short, {"inputs": "aa", "parameters": {"max_new_tokens": 8}})
    assert heard == [token for token, _ in again._tokens]


def test_one_row_without_memory_is_said(short: ServedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*rest: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(model_module, "generate_streaming", none)
    (row,) = run(short, {"inputs": "a"})
    assert "out of memory while generating" in str(row.completions.exception())


def test_a_row_that_fails_fails_alone(short: ServedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    original = generate_streaming

    def picky(model: Any, lines: Any, pad_id: int) -> None:
        if any(len(line.prompt) == 4 for line in lines):
            raise ValueError("boom")
        original(model, lines, pad_id)

    monkeypatch.setattr(model_module, "generate_streaming", picky)
    rows = run(short, {"inputs": ["aa", "bbb", "cccc", "d"], "parameters": {"max_new_tokens": 4}})
    assert [row.completions.exception() is None for row in rows] == [True, True, False, True]
    assert not short.is_broken


def test_a_device_that_computes_no_more_is_noticed(short: ServedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*rest: Any, **more: Any) -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(model_module, "generate_streaming", fails)
    monkeypatch.setattr(torch, "ones", fails)
    run(short, {"inputs": "a"})
    monkeypatch.undo()
    assert short.is_broken
    reasons: list[str] = []
    with listening(short, on_broken=reasons.append) as endpoint:
        assert endpoint.request("GET", "/ping").status == 500
        endpoint.post({"inputs": "a"})
    short.is_broken = False
    assert reasons == ["the device no longer works"]


def test_weights_that_give_no_numbers_are_the_models_fault(tmp_path_factory: pytest.TempPathFactory) -> None:
    broken = small(tmp_path_factory)
    with torch.no_grad():
        next(broken.model.network.parameters()).fill_(float("nan"))
    with listening(broken) as endpoint:
        reply = endpoint.post({"inputs": "a"})
        streamed = endpoint.stream({"inputs": "a"})
    assert reply.status == streamed.status == 500
    assert reply.json == streamed.json
    assert reply.json["error_type"] == "generation"
    assert "scores are not numbers" in reply.json["error"]
