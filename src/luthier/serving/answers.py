"""Answers in the form that was asked in, whole or as a stream of events.

    inputs        [{"generated_text": "..."}]                     one object for each input
    dialogs       [{"generation": {"role": "assistant", "content": "..."}}]
    text_inputs   {"generated_texts": ["..."]}
    a bare text   {"generated_text": "..."}
    messages      {"choices": [{"message": {...}, "finish_reason": "stop"}], "usage": {...}, ...}
    a stream      {"index": 1, "token": {"id": 5, "text": " a", ...}, "generated_text": null, "details": null}, ...

It knows JSON, nothing of models or of HTTP.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from luthier.serving.requests import Asked, Form
from luthier.serving.row import LENGTH, Answer, Token

EVENT_STREAM, JSON_LINES = "text/event-stream", "application/jsonlines"


def whole(asked: Asked, answers: Sequence[Answer], model: str) -> Any:
    """The body of a reply. `answers`: of each prompt in turn, `num_return_sequences` of them."""
    return _SHAPES[asked.form](asked, answers, model)


def _inputs(asked: Asked, answers: Sequence[Answer], model: str) -> Any:
    return _nested(asked, [_generated(asked, answer) for answer in answers])


def _dialogs(asked: Asked, answers: Sequence[Answer], model: str) -> Any:
    made = [
        {"generation": {"role": "assistant", "content": answer.text}}
        | ({"details": _details(asked, answer)} if asked.parameters.detailed else {})
        for answer in answers
    ]
    return _nested(asked, made)


def _nested(asked: Asked, made: list[dict[str, Any]]) -> list[Any]:
    """One entry for each prompt: an object, or, of a list whose prompts have several answers, a list of them."""
    count = asked.parameters.num_return_sequences
    if not asked.listed or count == 1:
        return made
    return [made[start : start + count] for start in range(0, len(made), count)]


def _text_inputs(asked: Asked, answers: Sequence[Answer], model: str) -> Any:
    return {"generated_texts": [_text(asked, answer) for answer in answers]}


def _bare(asked: Asked, answers: Sequence[Answer], model: str) -> Any:
    return {"generated_text": answers[0].text}


def _messages(asked: Asked, answers: Sequence[Answer], model: str) -> Any:
    choices = [
        {
            "index": place,
            "message": {"role": "assistant", "content": answer.text},
            "logprobs": _logprobs(answer) if asked.parameters.details else None,
            "finish_reason": _finish(answer),
        }
        for place, answer in enumerate(answers)
    ]
    return _completion("chat.completion", model) | {"choices": choices, "usage": _usage(answers)}


_SHAPES: dict[Form, Callable[[Asked, Sequence[Answer], str], Any]] = {
    Form.INPUTS: _inputs,
    Form.DIALOGS: _dialogs,
    Form.TEXT_INPUTS: _text_inputs,
    Form.TEXT: _bare,
    Form.MESSAGES: _messages,
}


def _text(asked: Asked, answer: Answer) -> str:
    return answer.prompt + answer.text if asked.parameters.return_full_text else answer.text


def _generated(asked: Asked, answer: Answer) -> dict[str, Any]:
    made: dict[str, Any] = {"generated_text": _text(asked, answer)}
    return made | {"details": _details(asked, answer)} if asked.parameters.detailed else made


def _details(asked: Asked, answer: Answer) -> dict[str, Any]:
    return _ending(answer) | {
        "prefill": [_token(token) for token in answer.prefill],
        "tokens": [_token(token) for token in answer.tokens],
    }


def _ending(answer: Answer) -> dict[str, Any]:
    return {"finish_reason": answer.finish, "generated_tokens": answer.count, "seed": answer.seed}


def _token(token: Token) -> dict[str, Any]:
    return {"id": token.id, "text": token.text, "logprob": token.logprob, "special": token.special}


def _logprobs(answer: Answer) -> dict[str, Any]:
    return {"content": [{"token": token.text, "logprob": token.logprob} for token in answer.tokens]}


def _finish(answer: Answer) -> str:
    return "length" if answer.finish == LENGTH else "stop"


def _usage(answers: Sequence[Answer]) -> dict[str, int]:
    read, written = answers[0].prompt_tokens, sum(answer.count for answer in answers)
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def _completion(kind: str, model: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": model}


class Stream:
    """The events of one streamed answer, as bytes: server-sent events, or JSON lines."""

    def __init__(self, asked: Asked, model: str, media: str) -> None:
        self.asked = asked
        self.media = media
        self._count = 0
        self._head = _completion("chat.completion.chunk", model)

    def event(self, token: Token, answer: Answer | None) -> bytes:
        """What to send for a token; the last one comes with the answer."""
        self._count += 1
        if self.asked.form is not Form.MESSAGES:
            return self._encoded(self._told(token, answer))
        delta = {"role": "assistant", "content": token.text} if self._count == 1 else {"content": token.text}
        logprobs = None
        if self.asked.parameters.details:
            logprobs = {"content": [{"token": token.text, "logprob": token.logprob}]}
        finish = None if answer is None else _finish(answer)
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        sent = self._encoded(self._head | {"choices": [choice]})
        return sent + b"data: [DONE]\n\n" if answer is not None and self.media == EVENT_STREAM else sent

    def error(self, body: dict[str, str]) -> bytes:
        """What to send where the answer breaks off."""
        return self._encoded(body)

    def _told(self, token: Token, answer: Answer | None) -> dict[str, Any]:
        ended = answer is not None
        return {
            "index": self._count,
            "token": _token(token),
            "generated_text": _text(self.asked, answer) if ended and answer else None,
            "details": _ending(answer) if ended and answer and self.asked.parameters.details else None,
        }

    def _encoded(self, body: Any) -> bytes:
        text = json.dumps(body, ensure_ascii=False)
        return (f"data: {text}\n\n" if self.media == EVENT_STREAM else f"{text}\n").encode()
