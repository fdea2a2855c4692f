"""Renders the fields of a row or request as a prompt, as in training; used by `luthier generate` and serving.

    a template       {"instruction": ..., "context": ...}   filled into the run's own template
    conversations    {"messages": [...], "tools": [...]}    by the tokenizer's chat template
    neither          {"prompt": ...}                        the text itself

A run is described by its provenance (luthier.json).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from luthier.data.build import trust_special_tokens
from luthier.data.chat import ChatTemplate
from luthier.data.conversation import KEYS, ChatError, read_request
from luthier.data.example import Example, Piece
from luthier.data.template import Template
from luthier.data.template_forms import REFUSE
from luthier.data.tokenize import Tokenizer
from luthier.errors import UserError

Render = Callable[[Mapping[str, Any]], Example]


def prompt_renderer(
    provenance: Mapping[str, Any], tokenizer: Tokenizer, raw: bool, trusted: bool | None = None
) -> Render:
    """Return a function that renders fields as a prompt: as in training, or (`raw`) the text of the field `prompt`.

    `trusted`: special-token strings in the fields become control tokens; None means as in training, and False where
    `raw`. The returned function raises UserError for invalid fields.
    """
    render = _kind_renderer(provenance, tokenizer, raw)
    if trusted is None:
        trusted = not raw and bool(provenance.get("settings", {}).get("parse_special_tokens"))
    return (lambda fields: trust_special_tokens(render(fields))) if trusted else render


def _kind_renderer(provenance: Mapping[str, Any], tokenizer: Tokenizer, raw: bool) -> Render:
    kind, stored = provenance.get("kind"), provenance.get("template")
    mode = str(provenance.get("settings", {}).get("reasoning", REFUSE))
    chat = tokenizer.chat.with_reasoning(mode) if tokenizer.chat else None
    if kind == "chat" and not raw:
        return lambda fields: _chat_prompt(chat, fields)
    if stored and not raw:
        template = Template.from_json(stored)
        return lambda fields: _template_prompt(template, fields)
    return lambda fields: _plain_prompt(chat, fields, raw)


def _template_prompt(template: Template, fields: Mapping[str, Any]) -> Example:
    missing = [name for name in template.prompt_fields if not isinstance(fields.get(name), str)]
    if missing:
        raise UserError(f"the run's template requires the text fields {', '.join(map(repr, missing))}")
    return template.render_prompt({name: fields[name] for name in template.prompt_fields})


def _chat_prompt(chat: ChatTemplate | None, fields: Mapping[str, Any], all_read: bool = False) -> Example:
    """Render a conversation; `all_read`: keys that are not read are refused, not ignored as in a row."""
    if chat is None:
        raise UserError("'messages' requires a model whose tokenizer has a chat template")
    if not any(isinstance(fields.get(key), list) and fields[key] for key in (*KEYS, "prompt")):
        raise UserError(
            'a chat row requires \'messages\': a list of {"role": "system|user|assistant|tool", "content": TEXT}'
        )
    try:
        conversation = read_request(fields)
        if all_read and (unread := chat.unread_keys(conversation)):
            names = ", ".join(sorted(map(repr, unread)))
            raise UserError(f"not read by the model's chat template: {names}; leave out what is not read")
        return chat.render_prompt(conversation)
    except ChatError as error:
        raise UserError(str(error)) from None


def _plain_prompt(chat: ChatTemplate | None, fields: Mapping[str, Any], raw: bool) -> Example:
    if isinstance(fields.get("messages"), list):
        return _chat_prompt(chat, fields, all_read=raw)
    if not isinstance(fields.get("prompt"), str):
        raise UserError("a row for a model without a template requires the text field 'prompt' (or 'messages')")
    return Example("", (Piece(fields["prompt"], trained=False),))
