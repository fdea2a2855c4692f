"""Response bodies in the format of the request, whole or as a stream of events.

    inputs        [{"generated_text": "..."}]                     one object per input
    dialogs       [{"generation": {"role": "assistant", "content": "..."}}]
    text_inputs   {"generated_texts": ["..."]}
    plain text    {"generated_text": "..."}
    messages      {"choices": [{"message": {...}, "finish_reason": "stop"}], "usage": {...}, ...}
    a stream      {"index": 1, "token": {"id": 5, "text": " a", ...}, "generated_text": null, "details": null}, ...

Builds JSON; knows nothing of models or of HTTP.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from luthier.serving.requests import InvocationRequest, RequestFormat
from luthier.serving.row import LENGTH, Completion, Token

EVENT_STREAM, JSON_LINES = "text/event-stream", "application/jsonlines"


def response_body(request: InvocationRequest, completions: Sequence[Completion], model: str) -> Any:
    """Build the response. `completions`: `num_return_sequences` of each prompt, in order."""
    return _BUILDERS[request.format](request, completions, model)


def _inputs(request: InvocationRequest, completions: Sequence[Completion], model: str) -> Any:
    entries = [{"generated_text": _text(request, item)} | _optional_details(request, item) for item in completions]
    return _nest(request, entries)


def _dialogs(request: InvocationRequest, completions: Sequence[Completion], model: str) -> Any:
    entries = [
        {"generation": {"role": "assistant", "content": item.text}} | _optional_details(request, item)
        for item in completions
    ]
    return _nest(request, entries)


def _nest(request: InvocationRequest, entries: list[dict[str, Any]]) -> list[Any]:
    """Group the entries by prompt if the request is a list with several sequences per prompt."""
    count = request.parameters.num_return_sequences
    if not request.is_list or count == 1:
        return entries
    return [entries[start : start + count] for start in range(0, len(entries), count)]


def _text_inputs(request: InvocationRequest, completions: Sequence[Completion], model: str) -> Any:
    return {"generated_texts": [_text(request, item) for item in completions]}


def _plain_text(request: InvocationRequest, completions: Sequence[Completion], model: str) -> Any:
    return {"generated_text": completions[0].text}


def _messages(request: InvocationRequest, completions: Sequence[Completion], model: str) -> Any:
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": item.text},
            "logprobs": _logprobs(item.tokens) if request.parameters.details else None,
            "finish_reason": _finish_reason(item),
        }
        for index, item in enumerate(completions)
    ]
    return _chat_completion("chat.completion", model) | {"choices": choices, "usage": _usage(completions)}


_BUILDERS: dict[RequestFormat, Callable[[InvocationRequest, Sequence[Completion], str], Any]] = {
    RequestFormat.INPUTS: _inputs,
    RequestFormat.DIALOGS: _dialogs,
    RequestFormat.TEXT_INPUTS: _text_inputs,
    RequestFormat.TEXT: _plain_text,
    RequestFormat.MESSAGES: _messages,
}


def _text(request: InvocationRequest, completion: Completion) -> str:
    return completion.prompt + completion.text if request.parameters.return_full_text else completion.text


def _optional_details(request: InvocationRequest, completion: Completion) -> dict[str, Any]:
    if not request.parameters.has_details:
        return {}
    tokens = {"prefill": [*map(_token, completion.prefill)], "tokens": [*map(_token, completion.tokens)]}
    return {"details": _ending(completion) | tokens}


def _ending(completion: Completion) -> dict[str, Any]:
    return {
        "finish_reason": completion.finish_reason,
        "generated_tokens": completion.token_count,
        "seed": completion.seed,
    }


def _token(token: Token) -> dict[str, Any]:
    return {"id": token.id, "text": token.text, "logprob": token.logprob, "special": token.special}


def _logprobs(tokens: Sequence[Token]) -> dict[str, Any]:
    return {"content": [{"token": token.text, "logprob": token.logprob} for token in tokens]}


def _finish_reason(completion: Completion) -> str:
    return "length" if completion.finish_reason == LENGTH else "stop"


def _usage(completions: Sequence[Completion]) -> dict[str, int]:
    prompt, generated = completions[0].prompt_tokens, sum(item.token_count for item in completions)
    return {"prompt_tokens": prompt, "completion_tokens": generated, "total_tokens": prompt + generated}


def _chat_completion(kind: str, model: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": model}


class EventEncoder:
    """Encodes the events of one streamed completion as server-sent events or JSON lines."""

    def __init__(self, request: InvocationRequest, model: str, media_type: str) -> None:
        self.request = request
        self.media_type = media_type
        self._count = 0
        self._head = _chat_completion("chat.completion.chunk", model)

    def event(self, token: Token, completion: Completion | None) -> bytes:
        """Encode the event of a token; `completion` is given with the last token."""
        self._count += 1
        if self.request.format is not RequestFormat.MESSAGES:
            return self._encode(self._token_event(token, completion))
        delta = {"role": "assistant", "content": token.text} if self._count == 1 else {"content": token.text}
        logprobs = _logprobs([token]) if self.request.parameters.details else None
        reason = None if completion is None else _finish_reason(completion)
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        event = self._encode(self._head | {"choices": [choice]})
        is_last = completion is not None and self.media_type == EVENT_STREAM
        return event + b"data: [DONE]\n\n" if is_last else event

    def error(self, body: dict[str, str]) -> bytes:
        """Encode the event that ends a failed stream."""
        return self._encode(body)

    def _token_event(self, token: Token, completion: Completion | None) -> dict[str, Any]:
        text = details = None
        if completion is not None:
            text = _text(self.request, completion)
            details = _ending(completion) if self.request.parameters.details else None
        return {"index": self._count, "token": _token(token), "generated_text": text, "details": details}

    def _encode(self, body: Any) -> bytes:
        text = json.dumps(body, ensure_ascii=False)
        return (f"data: {text}\n\n" if self.media_type == EVENT_STREAM else f"{text}\n").encode()
