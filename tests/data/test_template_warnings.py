from __future__ import annotations

from pathlib import Path

import pytest
from data.row_files import Preparing, write_jsonl, write_template

from luthier.data.template import Template
from luthier.data.template_warnings import template_warnings
from luthier.errors import DataError

FRAME = ("<s>", "</s>")


@pytest.mark.parametrize(
    ("prompt", "completion", "warning"),
    [
        ("Say it.", "{a}", "the prompt has no {field}, so every row has the same prompt"),
        ("{q}", "yes", "the completion has no {field}, so every row has the same answer"),
        ("{q} {{context}}", "{a}", "{{context}} in the prompt is the text {context}; for the field write {context}"),
        ("{q}: {a}", "{a}", "the prompt contains {a}, the completion: the model is shown its answer"),
        ("<s>{q}", "{a}", "the prompt begins with <s>, which is added to every row"),
        ("{q}", "{a} </s>\n", "the completion ends with </s>, which is added to every row"),
    ],
)
def test_an_oddity_is_said(prompt: str, completion: str, warning: str) -> None:
    assert [line for line in template_warnings(Template(prompt, completion), *FRAME) if warning in line] != []


@pytest.mark.parametrize(
    ("prompt", "completion"),
    [("{q}", "{a}"), ('{{"q": "{q}"}}', "{a}"), ("{q} {hint}", " {a} {hint}"), ("{q}<s>", "{a}")],
)
def test_a_usual_template_has_none(prompt: str, completion: str) -> None:
    assert list(template_warnings(Template(prompt, completion), *FRAME)) == []


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("{ question }", "{ question } has blanks inside its braces; write {question}"),
        ('{"q": 1}', "format specifications are not allowed; give a field name, or write {{ }} for literal braces"),
    ],
)
def test_braces_that_are_no_field_are_refused(prompt: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        Template(prompt, "{answer}")
    assert message in str(caught.value)


def test_preparation_says_it(preparing: Preparing, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "d" / "a.jsonl", [{"question": f"{n}?", "answer": f"{n}"} for n in range(4)])
    write_template(tmp_path / "d", "{question}", "{answer}<|endoftext|>")
    warnings = preparing(tmp_path / "d").warnings
    assert any("the completion ends with <|endoftext|>, which is added to every row" in line for line in warnings)
