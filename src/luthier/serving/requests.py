"""The body of a request to what it asks for. The forms, each told by the key that it brings:

    inputs        a text, several, a row's fields, several rows, or dialogs [[{role, content}, ...]]
    fields        a row's fields, rendered as the artifact was trained
    messages      a conversation, in the form of the Messages API
    text_inputs   FLAN-T5 1.x: a text or several, the parameters beside them
    a bare text   Content-Type text/plain or application/x-text

It knows JSON and names, nothing of models or of HTTP beyond a content type.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from luthier.data.records import BadRowError, describe, parse_object
from luthier.errors import did_you_mean
from luthier.serving.parameters import RULES, Parameters, Rule, checked, read_parameters
from luthier.serving.refusals import Refusal

JSON_TYPES = ("", "application/json", "application/octet-stream")  # clients that name no type send JSON
TEXT_TYPES = ("text/plain", "application/x-text")
MOST_PROMPTS = 1_024  # of a request


_KINDS = ((str, "text"), (dict, "fields"), (list, "messages"))


class Form(StrEnum):
    """The forms of a request, and of its answer."""

    INPUTS = "inputs"
    DIALOGS = "dialogs"
    MESSAGES = "messages"
    TEXT_INPUTS = "text_inputs"
    TEXT = "text"


@dataclass(frozen=True, slots=True)
class Prompt:
    """One thing to be answered: a `text`, the `fields` of a row, or a conversation's `messages`."""

    kind: str
    value: Any
    where: str


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that is understood. `listed`: its prompts came as a list. `stream` None: as the door says."""

    form: Form
    prompts: tuple[Prompt, ...]
    parameters: Parameters
    listed: bool = False
    stream: bool | None = None


_NO_DETAILS = "answers of this form carry no details; send inputs"
_STANDS_ALONE = "answers to a conversation stand alone; leave it out"
_TEXT_INPUTS_LACK = dict.fromkeys(("details", "decoder_input_details"), _NO_DETAILS)
_DIALOGS_LACK = {"return_full_text": _STANDS_ALONE}

# The Messages API's names of parameters. Where a temperature of 0 is what asks for the likeliest tokens, it may be 0.
_MESSAGES: dict[str, tuple[str, Rule]] = {
    "max_tokens": ("max_new_tokens", RULES["max_new_tokens"]),
    "max_completion_tokens": ("max_new_tokens", RULES["max_new_tokens"]),
    "temperature": ("temperature", Rule("number", "a number from 0 up", 0)),
    "top_p": ("top_p", RULES["top_p"]),
    "top_k": ("top_k", RULES["top_k"]),
    "stop": ("stop", RULES["stop"]),
    "seed": ("seed", RULES["seed"]),
    "n": ("num_return_sequences", RULES["num_return_sequences"]),
    "logprobs": ("details", RULES["details"]),
    "repetition_penalty": ("repetition_penalty", RULES["repetition_penalty"]),
    "parse_special_tokens": ("parse_special_tokens", RULES["parse_special_tokens"]),
}


def read_request(content_type: str, body: bytes) -> Asked:
    """Read a request's body. Refusal, in one line, for what cannot be understood."""
    media, _, rest = content_type.partition(";")
    media = media.strip().lower()
    charset = rest.lower().partition("charset=")[2].partition(";")[0].strip(" \"'")
    if charset not in ("", "utf-8", "utf8"):
        raise Refusal(f"Content-Type: {content_type}: expected UTF-8", 415)
    if media in TEXT_TYPES:
        return _bare(_decoded(body))
    if media not in JSON_TYPES:
        raise Refusal(f"Content-Type: {media}: expected application/json, or text/plain for a bare prompt", 415)
    try:
        given = parse_object(_decoded(body))
    except BadRowError as error:
        raise Refusal(f"the body: {error}") from None
    present = [key for key in _READERS if key in given]
    if len(present) != 1:
        found = f"has {' and '.join(present)}" if present else "has none of them"
        hint = next((near for key in given if (near := did_you_mean(key, _READERS))), "") if not present else ""
        raise Refusal(f"the body: expected one of {', '.join(_READERS)}; it {found}{hint}")
    return _READERS[present[0]](given)


def _decoded(body: bytes) -> str:
    try:
        return body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Refusal(f"the body: not UTF-8 at byte {error.start}") from None


def _bare(text: str) -> Asked:
    if not text:
        raise Refusal("the body: empty; expected the prompt's text")
    return Asked(Form.TEXT, (Prompt("text", text, "the body"),), Parameters())


def _inputs(given: dict[str, Any]) -> Asked:
    _check_keys(given, ("inputs", "parameters", "stream"))
    value = given["inputs"]
    prompts, listed = _prompts(value)
    form = Form.DIALOGS if prompts[0].kind == "messages" else Form.INPUTS
    parameters = read_parameters(given.get("parameters"), excluded=_DIALOGS_LACK if form is Form.DIALOGS else None)
    return Asked(form, prompts, parameters, listed, _stream(given))


def _prompts(value: Any) -> tuple[tuple[Prompt, ...], bool]:
    """What `inputs` holds, and whether it is a list."""
    if _kind(value) in ("text", "fields"):
        return (Prompt(_kind(value), value, "inputs"),), False
    if not isinstance(value, list):
        raise Refusal(f"inputs: {describe(value)}: expected a text, a row's fields as an object, or a list of these")
    if not value:
        raise Refusal("inputs: an empty list: expected at least one text")
    _check_count("inputs", value)
    kinds = {_kind(item) for item in value}
    if len(kinds) != 1 or "" in kinds:
        raise Refusal("inputs: expected a list of texts, of objects (rows' fields), or of dialogs, and of one of them")
    kind = kinds.pop()
    return tuple(Prompt(kind, item, f"inputs[{place}]") for place, item in enumerate(value)), True


def _kind(value: Any) -> str:
    """What kind of Prompt a JSON value is."""
    return next((kind for form, kind in _KINDS if type(value) is form), "")  # a JsonLiteral is no text


def _fields(given: dict[str, Any]) -> Asked:
    _check_keys(given, ("fields", "parameters", "stream"))
    value = given["fields"]
    rows = value if isinstance(value, list) else [value]
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise Refusal("fields: expected an object with a row's fields, or a list of such objects")
    _check_count("fields", rows)
    listed = isinstance(value, list)
    prompts = tuple(Prompt("fields", row, f"fields[{place}]" if listed else "fields") for place, row in enumerate(rows))
    return Asked(Form.INPUTS, prompts, read_parameters(given.get("parameters")), listed, _stream(given))


def _text_inputs(given: dict[str, Any]) -> Asked:
    value = given["text_inputs"]
    texts = value if isinstance(value, list) else [value]
    if not texts or not all(type(text) is str for text in texts):
        raise Refusal("text_inputs: expected a text, or a list of texts")
    _check_count("text_inputs", texts)
    rest = {name: item for name, item in given.items() if name != "text_inputs"}
    parameters = read_parameters(rest, where="", excluded=_TEXT_INPUTS_LACK)
    prompts = tuple(Prompt("text", text, f"text_inputs[{place}]") for place, text in enumerate(texts))
    return Asked(Form.TEXT_INPUTS, prompts, parameters, isinstance(value, list))


def _messages(given: dict[str, Any]) -> Asked:
    _check_keys(given, ("messages", "model", "stream", *_MESSAGES))
    if type(given.get("model", "")) not in (str, type(None)):
        raise Refusal(f"model: {describe(given['model'])}: expected a name")
    found: dict[str, Any] = {}
    for name, (parameter, rule) in _MESSAGES.items():
        if given.get(name) is not None:
            if parameter in found:
                raise Refusal(f"{name}: max_tokens is its other name; send one of them")
            found[parameter] = checked(rule, given[name], name)
    if found.get("temperature") == 0:
        found |= {"temperature": None, "do_sample": False}
    parameters = Parameters(**found)
    if parameters.num_return_sequences > 1 and not parameters.samples:
        raise Refusal(f"n: {parameters.num_return_sequences}: there is one likeliest answer; set temperature above 0")
    prompts = (Prompt("messages", given["messages"], "messages"),)
    return Asked(Form.MESSAGES, prompts, parameters, stream=_stream(given))


def _check_count(name: str, prompts: list[Any]) -> None:
    if len(prompts) > MOST_PROMPTS:
        raise Refusal(f"{name}: {len(prompts):,} of them: a request may hold {MOST_PROMPTS:,}; send several requests")


def _check_keys(given: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for key in given:
        if key not in known:
            raise Refusal(f"{key}: unknown key{did_you_mean(key, known)}; known beside {known[0]} are "
                          f"{', '.join(known[1:])}")  # fmt: skip


def _stream(given: Mapping[str, Any]) -> bool | None:
    value = given.get("stream")
    return None if value is None else bool(checked(Rule("flag", "true or false"), value, "stream"))


_READERS = {"inputs": _inputs, "messages": _messages, "fields": _fields, "text_inputs": _text_inputs}


def check_streamable(asked: Asked) -> Asked:
    """The request as a stream answers it; Refusal for what no stream can tell."""
    if len(asked.prompts) > 1 or asked.parameters.num_return_sequences > 1:
        raise Refusal("a stream tells one answer: send one input, and ask for one sequence")
    if asked.parameters.num_beams > 1:
        raise Refusal("num_beams: a beam search knows its tokens only at its end; ask without a stream")
    if asked.parameters.decoder_input_details:
        raise Refusal("decoder_input_details: not in a stream; ask without one")
    return replace(asked, stream=True)
