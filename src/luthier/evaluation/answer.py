"""`luthier generate`: answers of a run or a base model to one text, or to a file of rows.

A run renders rows with the template that trained it, so the served prompt is the trained prompt, token for token.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console

from luthier.data.example import Example
from luthier.data.prompts import prompt_renderer
from luthier.data.records import BadRowError, parse_object
from luthier.data.strict_utf8 import NotUtf8Error, Utf8Lines
from luthier.data.template import Template
from luthier.data.tokenize import Tokenizer
from luthier.errors import DataError, Problem, UserError
from luthier.weights.generate import generate
from luthier.weights.load import compute_dtype, find_device
from luthier.weights.model import Model
from luthier.weights.target import Target, find_target

ROWS_AT_ONCE = 64


def answer(request: dict[str, Any], console: Console) -> None:
    """Print the answers; request: {"target", "text", "prompts" or "file", "max_new_tokens", "beams", "raw", "device",
    "json"}.
    """
    target = find_target(request["target"], lambda text: print(text, file=sys.stderr))  # noqa: T201
    device = find_device(request.get("device", "auto"))
    tokenizer = Tokenizer.load(target.base, target.chat_template)
    render = prompt_renderer(target.provenance, tokenizer, raw=bool(request.get("raw")))
    prompts = (
        _prompts_of_file(Path(request["file"]), render)
        if request.get("file")
        else iter([render(_fields(each, target, raw=bool(request.get("raw")))) for each in _prompts(request)])
    )
    model = target.load(device, target.dtype or compute_dtype("auto", device))
    as_lines = bool(request.get("json")) or bool(request.get("file"))
    for prompt, text, truncated in _answers(model, tokenizer, prompts, request):
        if as_lines:
            line = {"row": prompt.source, "prompt": prompt.prompt, "generated_text": text, "truncated": truncated}
            sys.stdout.write(json.dumps(line, ensure_ascii=False) + "\n")
        else:
            sys.stdout.write(text + "\n")
            if truncated:
                console.stderr = True
                console.print(f"(stopped at {request['max_new_tokens']} new tokens; --max-new-tokens allows more)")
        sys.stdout.flush()


def _prompts(request: Mapping[str, Any]) -> list[str | Mapping[str, Any]]:
    """The prompts of a request that names no file: its one text, or several texts and rows of fields."""
    return list(request["prompts"]) if request.get("prompts") else [request["text"]]


def _fields(prompt: str | Mapping[str, Any], target: Target, raw: bool) -> Mapping[str, Any]:
    return _fields_of_text(prompt, target, raw) if isinstance(prompt, str) else prompt


def _fields_of_text(text: str, target: Target, raw: bool) -> dict[str, Any]:
    """The fields that a command-line text stands for."""
    kind, stored = target.provenance.get("kind"), target.provenance.get("template")
    if kind == "chat" and not raw:
        return {"messages": [{"role": "user", "content": text}]}
    if not stored or raw:
        return {"prompt": text}
    names = Template.from_json(stored).prompt_fields
    if len(names) == 1:
        return {names[0]: text}
    if text.lstrip().startswith("{"):
        try:
            return parse_object(text)
        except BadRowError as error:
            raise UserError(f"the text: {error}") from None
    shown = ", ".join(f'"{name}": "..."' for name in names)
    raise UserError(f"the run's template has {len(names)} fields: give a JSON object {{{shown}}}, or --raw")


def _prompts_of_file(path: Path, render: Callable[[Mapping[str, Any]], Example]) -> Iterator[Example]:
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    lines = Utf8Lines(path)
    try:
        for number, line in lines:
            if line.strip():
                example = render(parse_object(line))
                yield Example(f"{path.name}:{number}", example.pieces, example.add_special_tokens)
    except (BadRowError, NotUtf8Error, UserError) as error:
        raise DataError(Problem(path.name, lines.number, str(error))) from None


def _answers(
    model: Model, tokenizer: Tokenizer, prompts: Iterator[Example], request: Mapping[str, Any]
) -> Iterator[tuple[Example, str, bool]]:
    while chunk := list(islice(prompts, ROWS_AT_ONCE)):
        asked = [tokenizer.prompt_ids(example) for example in chunk]
        for example, ids in zip(chunk, asked, strict=True):
            if not 0 < len(ids) < model.context_length:
                where = f"{example.source}: " if example.source else ""
                room = model.context_length - 1
                raise UserError(f"{where}the prompt has {len(ids):,} tokens; the model takes 1 to {room:,}")
        found = generate(
            model, asked, stop_ids=tokenizer.stop_ids, pad_id=tokenizer.pad_id,
            max_new_tokens=int(request["max_new_tokens"]), beams=int(request.get("beams", 1)),
        )  # fmt: skip
        for example, ids, generation in zip(chunk, asked, found, strict=True):
            yield example, tokenizer.decode(generation.ids, after=ids), generation.truncated
