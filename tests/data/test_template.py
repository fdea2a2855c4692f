from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.data.template import AUTOPILOT, DEFAULT, DEMARCATION, Template
from luthier.errors import DataError


def test_the_documented_default_is_jumpstarts_word_for_word() -> None:
    assert DEFAULT.prompt == (
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
        "response that appropriately completes the request.\n\n### Instruction:\n{instruction}\n\n### Input:\n{context}"
    )
    assert DEFAULT.completion == "{response}"
    assert DEFAULT.fields == ("instruction", "context", "response")
    assert AUTOPILOT.fields == ("input", "output")
    assert DEMARCATION == "\n\n### Response:\n"


def test_rendering_and_demarcation() -> None:
    template = Template("q: {q} c: {c}", " {a}", DEMARCATION)
    example = template.render({"q": "1?", "c": "", "a": "2", "other": "x"}, "f.jsonl:3")
    assert example.prompt == "q: 1? c: \n\n### Response:\n"
    assert example.completion == " 2"
    assert example.source == "f.jsonl:3"
    assert [piece.trained for piece in example.pieces] == [False, True]


def test_prompt_alone_is_the_rendered_prompt() -> None:
    template = Template("q: {q}", "{a}", DEMARCATION)
    assert template.prompt_fields == ("q",)
    assert template.render_prompt({"q": "1"}).prompt == template.render({"q": "1", "a": "2"}).prompt


@given(st.text(), st.text())
def test_values_are_inserted_verbatim_and_never_expanded(question: str, answer: str) -> None:
    example = Template("<{q}|{{q}}>", "{a}").render({"q": question, "a": answer})
    assert example.prompt == f"<{question}|{{q}}>"
    assert example.completion == answer


@pytest.mark.parametrize("value", ["{a}", "{{a}}", "{a.__class__}", "{0}", "%s", "${a}", "{"])
def test_placeholders_inside_values_stay_text(value: str) -> None:
    assert Template("{q}", "{a}").render({"q": value, "a": "SECRET"}).prompt == value


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        ("{a.__class__}", "attribute"),
        ("{a[0]}", "index"),
        ("{a!r}", "conversion"),
        ("{a:>10}", "format"),
        ("{a:}", "format"),
        ("{}", "positional"),
        ("{0}", "positional"),
        ("{a", "single '{'"),
        ("a}", "single '}'"),
        ("{a{b}}", "single '{'"),
    ],
)
def test_anything_but_plain_names_is_refused(prompt: str, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        Template(prompt + " {ok}", "{completion}")


def test_names_may_hold_spaces_and_any_letters() -> None:
    assert Template("{Review Text} {größe}", "{the-answer}").fields == ("Review Text", "größe", "the-answer")


def test_a_template_without_fields_is_refused() -> None:
    with pytest.raises(DataError, match="all rows would be the same"):
        Template("hello", "world")


def test_literal_spans_are_the_controls() -> None:
    piece = Template("<|im_start|>{q}<|im_end|>", "{a}").render({"q": "<|im_end|>", "a": ""}).pieces[0]
    assert [piece.text[start:end] for start, end in piece.controls] == ["<|im_start|>", "<|im_end|>"]
    assert piece.controls[1][0] == len("<|im_start|><|im_end|>")


def test_json_round_trip() -> None:
    template = Template("{q}", "{a}", DEMARCATION)
    assert Template.from_json(json.loads(json.dumps(template.to_json()))) == template
    assert Template("{q}", "{a}").to_json() == {"prompt": "{q}", "completion": "{a}"}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{'prompt': 'x'}", "template.json:1: not JSON"),
        (b'{"prompt": "{q}", "completion": "{a}",}', "not JSON"),
        (b"[]", "expected an object"),
        (b'{"prompt": "{q}"}', "'completion' must be a string"),
        (b'{"prompt": "{q}", "completion": 3}', "'completion' must be a string"),
        (b'{"prompt": "{q}", "completion": "{a}", "promt": "x"}', "unknown key 'promt'; did you mean 'prompt'"),
        (b'{"prompt": "{q.x}", "completion": "{a}"}', "template.json: 'prompt': {q.x}: attribute"),
        (b'{"prompt": "\xff{q}", "completion": "{a}"}', "not UTF-8"),
        (b"[" * 100_000, "nested too deeply|not JSON"),
    ],
)
def test_a_bad_file_is_refused_in_one_line(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "template.json").write_bytes(content)
    with pytest.raises(DataError, match=reason) as caught:
        Template.read(tmp_path / "template.json")
    assert "\n" not in str(caught.value)


def test_a_bom_is_dropped(tmp_path: Path) -> None:
    (tmp_path / "template.json").write_text('{"prompt": "{q}", "completion": "{a}"}', "utf-8-sig")
    assert Template.read(tmp_path / "template.json").prompt == "{q}"
