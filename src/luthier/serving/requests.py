"""Parses request bodies. Formats, recognised by their key:

    inputs        a text, a list of texts, a row's fields, a list of rows, or dialogs [[{role, content}, ...]]
    fields        a row's fields, rendered with the template of training
    messages      a conversation, as in the Messages API, with `tools` beside it
    text_inputs   FLAN-T5 1.x: a text or a list of texts, parameters at the top level
    plain text    Content-Type text/plain or application/x-text

Knows nothing of models, nor of HTTP except for the content type.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from luthier.data.records import BadRowError, describe, parse_object
from luthier.errors import did_you_mean
from luthier.serving.errors import InvocationError
from luthier.serving.parameters import (
    FLAG,
    PARAMETERS,
    GenerationParameters,
    ParameterSpec,
    parse_parameter,
    read_parameters,
)

JSON_TYPES = ("", "application/json", "application/octet-stream")  # clients that send no content type send JSON
TEXT_TYPES = ("text/plain", "application/x-text")
MAX_PROMPTS = 1_024  # per request

MESSAGE = '{"role": "system|user|assistant|tool", "content": text}'
_KINDS = ((str, "text"), (dict, "fields"), (list, "messages"))


class RequestFormat(StrEnum):
    """The formats of a request and its response."""

    INPUTS = "inputs"
    DIALOGS = "dialogs"
    MESSAGES = "messages"
    TEXT_INPUTS = "text_inputs"
    TEXT = "text"


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt. `kind`: text, fields (of a row) or messages (the fields of a conversation); `where`: for errors."""

    kind: str
    value: Any
    where: str


@dataclass(frozen=True, slots=True, kw_only=True)
class InvocationRequest:
    """A parsed request. `is_list`: the prompts came as a list. `stream` None: the path decides."""

    format: RequestFormat
    prompts: tuple[Prompt, ...]
    parameters: GenerationParameters
    is_list: bool = False
    stream: bool | None = None


_NO_DETAILS = "not supported with text_inputs; send inputs instead"
_TEXT_INPUTS_EXCLUDED = dict.fromkeys(("details", "decoder_input_details"), _NO_DETAILS)
_DIALOGS_EXCLUDED = {"return_full_text": "not supported for conversations; leave it out"}

# The Messages API's parameter names; a temperature of 0 means greedy decoding there.
_MESSAGES = {
    "max_tokens": "max_new_tokens", "max_completion_tokens": "max_new_tokens", "n": "num_return_sequences",
    "logprobs": "details", "temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "stop": "stop",
    "seed": "seed", "repetition_penalty": "repetition_penalty", "parse_special_tokens": "parse_special_tokens",
}  # fmt: skip
_MESSAGES_SPECS = PARAMETERS | {"temperature": ParameterSpec(kind="number", expected="a number of at least 0", low=0)}


def read_request(content_type: str, body: bytes) -> InvocationRequest:
    """Parse a request's body; InvocationError if it is invalid."""
    media, _, rest = content_type.partition(";")
    media = media.strip().lower()
    charset = rest.lower().partition("charset=")[2].partition(";")[0].strip(" \"'")
    if charset not in ("", "utf-8", "utf8"):
        raise InvocationError(f"Content-Type: {content_type}: expected UTF-8", 415)
    if media in TEXT_TYPES:
        return _plain_text(_decode(body))
    if media not in JSON_TYPES:
        raise InvocationError(f"Content-Type: {media}: expected application/json, or text/plain for a prompt", 415)
    try:
        fields = parse_object(_decode(body))
    except BadRowError as error:
        raise InvocationError(f"the body: {error}") from None
    present = [key for key in _READERS if key in fields]
    if len(present) != 1:
        actual = " and ".join(present) or "none of them"
        hint = next((near for key in fields if (near := did_you_mean(key, _READERS))), "") if not present else ""
        raise InvocationError(f"the body: expected exactly one of {', '.join(_READERS)}, found {actual}{hint}")
    return _READERS[present[0]](fields)


def _decode(body: bytes) -> str:
    try:
        return body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvocationError(f"the body: not UTF-8 at byte {error.start}") from None


def _plain_text(text: str) -> InvocationRequest:
    if not text:
        raise InvocationError("the body: empty; expected the prompt")
    prompt = Prompt("text", text, "the body")
    return InvocationRequest(format=RequestFormat.TEXT, prompts=(prompt,), parameters=GenerationParameters())


def _inputs(body: dict[str, Any]) -> InvocationRequest:
    _check_keys(body, ("inputs", "parameters", "stream"))
    value = body["inputs"]
    prompts, is_list = _prompts(value)
    return _with_parameters(body, prompts, is_list)


def _with_parameters(body: dict[str, Any], prompts: tuple[Prompt, ...], is_list: bool) -> InvocationRequest:
    is_dialog = prompts[0].kind == "messages"
    return InvocationRequest(
        format=RequestFormat.DIALOGS if is_dialog else RequestFormat.INPUTS, prompts=prompts, is_list=is_list,
        parameters=read_parameters(body.get("parameters"), excluded=_DIALOGS_EXCLUDED if is_dialog else None),
        stream=_stream(body),
    )  # fmt: skip


def _prompts(value: Any) -> tuple[tuple[Prompt, ...], bool]:
    """Return the prompts of `inputs`, and whether it is a list."""
    if _kind(value) in ("text", "fields"):
        return (Prompt(_kind(value), value, "inputs"),), False
    if not isinstance(value, list):
        raise InvocationError(
            f"inputs: {describe(value)}: expected a string, an object with a row's fields, or a list of these"
        )
    if not value:
        raise InvocationError("inputs: expected at least one prompt, found an empty list")
    _check_count("inputs", value)
    kinds = {_kind(item) for item in value}
    if len(kinds) != 1 or "" in kinds:
        raise InvocationError("inputs: expected a list of strings, of objects (rows' fields) or of dialogs, not mixed")
    kind = kinds.pop()
    items = [{"messages": item} for item in value] if kind == "messages" else value
    return tuple(Prompt(kind, item, f"inputs[{index}]") for index, item in enumerate(items)), True


def _kind(value: Any) -> str:
    """Return the kind of Prompt that a JSON value is; empty if none."""
    return next((kind for python_type, kind in _KINDS if type(value) is python_type), "")  # a JsonLiteral is no text


def _fields(body: dict[str, Any]) -> InvocationRequest:
    _check_keys(body, ("fields", "parameters", "stream"))
    value = body["fields"]
    rows = value if isinstance(value, list) else [value]
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise InvocationError("fields: expected an object with a row's fields, or a list of such objects")
    _check_count("fields", rows)
    where = [f"fields[{index}]" for index in range(len(rows))] if rows is value else ["fields"]
    prompts = tuple(Prompt("fields", row, place) for row, place in zip(rows, where, strict=True))
    return _with_parameters(body, prompts, rows is value)


def _text_inputs(body: dict[str, Any]) -> InvocationRequest:
    value = body["text_inputs"]
    texts = value if isinstance(value, list) else [value]
    if not texts or not all(type(text) is str for text in texts):
        raise InvocationError("text_inputs: expected a string or a list of strings")
    _check_count("text_inputs", texts)
    rest = {name: item for name, item in body.items() if name != "text_inputs"}
    return InvocationRequest(
        format=RequestFormat.TEXT_INPUTS,
        prompts=tuple(Prompt("text", text, f"text_inputs[{index}]") for index, text in enumerate(texts)),
        parameters=read_parameters(rest, where="", excluded=_TEXT_INPUTS_EXCLUDED),
        is_list=isinstance(value, list),
    )


def _messages(body: dict[str, Any]) -> InvocationRequest:
    _check_keys(body, ("messages", "tools", "tool_choice", "model", "stream", *_MESSAGES))
    if body.get("tool_choice") not in (None, "auto"):
        raise InvocationError('tool_choice: expected "auto": the model chooses whether it calls a tool')
    if type(body.get("model", "")) not in (str, type(None)):
        raise InvocationError(f"model: {describe(body['model'])}: expected a string")
    values: dict[str, Any] = {}
    for name, parameter in _MESSAGES.items():
        if body.get(name) is not None:
            if parameter in values:
                raise InvocationError(f"{name}: an alias of max_tokens; send only one of them")
            values[parameter] = parse_parameter(_MESSAGES_SPECS[parameter], body[name], name)
    if values.get("temperature") == 0:
        values |= {"temperature": None, "do_sample": False}
    parameters = GenerationParameters(**values)
    count = parameters.num_return_sequences
    if count > 1 and not parameters.is_sampling:
        raise InvocationError(f"n: {count}: greedy decoding returns one completion; set temperature above 0")
    if not isinstance(body["messages"], list):
        raise InvocationError(f"messages: expected a list of {MESSAGE}")
    fields = {"messages": body["messages"], "tools": body.get("tools")}
    prompt = Prompt("messages", fields, "messages")
    return InvocationRequest(
        format=RequestFormat.MESSAGES, prompts=(prompt,), parameters=parameters, stream=_stream(body)
    )


def _check_count(name: str, prompts: list[Any]) -> None:
    if len(prompts) > MAX_PROMPTS:
        raise InvocationError(f"{name}: {len(prompts):,} prompts; expected at most {MAX_PROMPTS:,} per request")


def _check_keys(body: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for key in body:
        if key not in known:
            raise InvocationError(f"{key}: unknown key{did_you_mean(key, known)}; known keys: {', '.join(known)}")


def _stream(body: Mapping[str, Any]) -> bool | None:
    value = body.get("stream")
    return None if value is None else bool(parse_parameter(FLAG, value, "stream"))


_READERS = {"inputs": _inputs, "messages": _messages, "fields": _fields, "text_inputs": _text_inputs}


def as_stream(request: InvocationRequest) -> InvocationRequest:
    """Return the request with `stream` on; InvocationError if it cannot be streamed."""
    parameters = request.parameters
    if len(request.prompts) > 1 or parameters.num_return_sequences > 1:
        raise InvocationError("a stream holds one completion: send one prompt with num_return_sequences 1")
    if parameters.num_beams > 1:
        raise InvocationError("num_beams: beam search cannot be streamed; set stream to false or num_beams to 1")
    if parameters.decoder_input_details:
        raise InvocationError("decoder_input_details: not supported in a stream; leave it out")
    return replace(request, stream=True)
