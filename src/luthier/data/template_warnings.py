"""Warnings about a template.json that is valid and probably not what its writer meant."""

from __future__ import annotations

import re
from collections.abc import Iterator

from luthier.data.template import Template

_DOUBLED = re.compile(r"\{\{\s*(\w+)\s*\}\}")


def template_warnings(template: Template, beginning: str, end: str) -> Iterator[str]:
    """Yield a line for each oddity. `beginning`, `end`: the text of the tokens that frame each row (BOS, EOS)."""
    if not template.prompt_fields:
        yield "template.json: the prompt has no {field}, so every row has the same prompt"
    if not template.completion_fields:
        yield "template.json: the completion has no {field}, so every row has the same answer"
    for part, text in (("prompt", template.prompt), ("completion", template.completion)):
        for name in dict.fromkeys(_DOUBLED.findall(text)):
            yield f"template.json: {{{{{name}}}}} in the {part} is the text {{{name}}}; for the field write {{{name}}}"
    for name in template.prompt_fields:
        if template.completion.strip() == f"{{{name}}}":
            yield f"template.json: the prompt contains {{{name}}}, the completion: the model is shown its answer"
    if beginning and template.prompt.startswith(beginning):
        yield f"template.json: the prompt begins with {beginning}, which is added to every row: it would stand twice"
    if end and template.completion.rstrip().endswith(end):
        yield f"template.json: the completion ends with {end}, which is added to every row: it would stand twice"
