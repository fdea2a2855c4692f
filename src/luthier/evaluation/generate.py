"""`luthier generate`: completes one prompt or a file of rows with a run or a base model.

A run renders rows with the template it was trained with, so the prompts equal the training prompts token for token. A
base model with a chat template is asked through it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
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
from luthier.weights.resolved_model import ResolvedModel, resolve_model

BATCH_ROWS = 64
_MESSAGES = '"messages"'  # the key of a conversation


def print_generations(request: dict[str, Any], console: Console) -> None:
    """Print generated texts.

    request: {"target", "text", "prompts" or "file", "max_new_tokens", "beams", "raw", "device", "json"}.
    """
    target = resolve_model(request["target"], lambda text: print(text, file=sys.stderr))  # noqa: T201
    device = find_device(request.get("device", "auto"))
    tokenizer = Tokenizer.load(target.base, target.chat_template, target.chat_date)
    render = prompt_renderer(target.provenance, tokenizer, raw=bool(request.get("raw")))
    fields_of = partial(
        _prompt_fields, target=target, raw=bool(request.get("raw")), has_chat=tokenizer.chat is not None
    )
    inline = request.get("prompts") or [request.get("text")]
    prompts = (
        _read_prompts(Path(request["file"]), render)
        if request.get("file")
        else iter([render(fields_of(prompt)) for prompt in inline])
    )
    model = target.load(device, target.dtype or compute_dtype("auto", device))
    as_json_lines = bool(request.get("json")) or bool(request.get("file"))
    for prompt, text, truncated in _generate_texts(model, tokenizer, prompts, request):
        if as_json_lines:
            line = {"row": prompt.source, "prompt": prompt.prompt, "generated_text": text, "truncated": truncated}
            sys.stdout.write(json.dumps(line, ensure_ascii=False) + "\n")
        else:
            sys.stdout.write(text + "\n")
            if truncated:
                console.stderr = True
                console.print(
                    f"(stopped after {request['max_new_tokens']} new tokens; raise --max-new-tokens for more)"
                )
        sys.stdout.flush()


def _prompt_fields(
    prompt: str | Mapping[str, Any], target: ResolvedModel, *, raw: bool, has_chat: bool
) -> Mapping[str, Any]:
    """Return the row fields of a prompt: fields as they are, a JSON object's, or a text in its place.

    A text is the user's message where the run was trained on conversations, and for a base model with a chat template.
    """
    if not isinstance(prompt, str):
        return prompt
    kind, stored = target.provenance.get("kind"), target.provenance.get("template")
    if raw:
        return {"prompt": prompt}
    names = Template.from_json(stored).prompt_fields if stored else ()
    if len(names) == 1:
        return {names[0]: prompt}
    is_object, takes_messages = prompt.lstrip().startswith("{"), kind == "chat" or (not target.provenance and has_chat)
    if is_object and (names or (takes_messages and _MESSAGES in prompt)):
        try:
            return parse_object(prompt)
        except BadRowError as error:
            raise UserError(f"the text: {error}") from None
    if names:
        expected = ", ".join(f'"{name}": "..."' for name in names)
        raise UserError(f"the run's template has {len(names)} fields: pass a JSON object {{{expected}}}, or use --raw")
    return {"messages": [{"role": "user", "content": prompt}]} if takes_messages else {"prompt": prompt}


def _read_prompts(path: Path, render: Callable[[Mapping[str, Any]], Example]) -> Iterator[Example]:
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


def _generate_texts(
    model: Model, tokenizer: Tokenizer, prompts: Iterator[Example], request: Mapping[str, Any]
) -> Iterator[tuple[Example, str, bool]]:
    """Yield (prompt, generated text, whether it stopped at the token limit), in batches of BATCH_ROWS."""
    while batch := list(islice(prompts, BATCH_ROWS)):
        prompt_ids = [tokenizer.prompt_ids(example) for example in batch]
        for example, ids in zip(batch, prompt_ids, strict=True):
            if not 0 < len(ids) < model.context_length:
                where = f"{example.source}: " if example.source else ""
                limit = model.context_length - 1
                raise UserError(f"{where}the prompt has {len(ids):,} tokens; expected 1 to {limit:,} for this model")
        generations = generate(
            model, prompt_ids, stop_ids=tokenizer.stop_ids, pad_id=tokenizer.pad_id,
            max_new_tokens=int(request["max_new_tokens"]), beams=int(request.get("beams", 1)),
        )  # fmt: skip
        for example, ids, generation in zip(batch, prompt_ids, generations, strict=True):
            yield example, tokenizer.decode(generation.ids, after=ids), generation.truncated
