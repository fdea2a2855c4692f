"""The endpoint over real HTTP: the response of each format, errors by status and message, streams, concurrency."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from serving.endpoints import Endpoint, listening

from luthier.serving.app import MAX_BODY_BYTES
from luthier.serving.model import ServedModel
from luthier.serving.requests import InvocationRequest
from luthier.serving.row import BatchRow

TALK = [{"role": "user", "content": "Hello! How are you?"}]
LIMIT = {"max_new_tokens": 8}


def test_ping(tiny: Endpoint) -> None:
    reply = tiny.request("GET", "/ping")
    assert (reply.status, reply.json) == (200, {"status": "ready", "model": "luthier/tiny"})


def test_while_loading() -> None:
    with listening(None) as endpoint:
        assert endpoint.request("GET", "/ping").status == 503
        reply = endpoint.post({"inputs": "a"})
        assert (reply.status, reply.json["error_type"], reply.headers["retry-after"]) == (503, "loading", "1")


def test_inputs(tiny: Endpoint) -> None:
    one = tiny.answer({"inputs": "The dog", "parameters": LIMIT})
    assert list(one[0]) == ["generated_text"]
    assert tiny.answer({"inputs": ["The dog"], "parameters": LIMIT}) == one
    two = tiny.answer({"inputs": ["The dog", "It was"], "parameters": LIMIT})
    assert two[:1] == one
    assert len(two) == 2
    beams = LIMIT | {"num_beams": 2, "num_return_sequences": 2}
    nested = tiny.answer({"inputs": ["The dog", "It was"], "parameters": beams})
    assert [len(answers) for answers in nested] == [2, 2]
    flat = tiny.answer({"inputs": "The dog", "parameters": beams})
    assert flat == nested[0]


def test_bare_text_and_text_inputs(tiny: Endpoint) -> None:
    prompt = "The cat sat. The cat"
    expected = tiny.text(prompt)
    assert tiny.post(prompt.encode(), content_type="application/x-text").json == {"generated_text": expected}
    assert tiny.post(prompt.encode(), content_type="text/plain; charset=utf-8").json == {"generated_text": expected}
    assert tiny.answer({"text_inputs": prompt}) == {"generated_texts": [expected]}
    drawn = tiny.answer({"text_inputs": "The dog", "max_length": 9, "do_sample": True, "num_return_sequences": 3})
    assert len(drawn["generated_texts"]) == 3


def test_messages(tiny: Endpoint) -> None:
    result = tiny.answer({"model": "any", "messages": TALK, "max_tokens": 4})
    assert (result["object"], result["model"]) == ("chat.completion", "luthier/tiny")
    assert abs(result["created"] - time.time()) < 60
    (choice,) = result["choices"]
    assert (choice["index"], choice["finish_reason"], choice["message"]["role"]) == (0, "length", "assistant")
    usage = result["usage"]
    assert usage["completion_tokens"] == 4
    assert usage["total_tokens"] == usage["prompt_tokens"] + 4
    whole = tiny.answer({"messages": TALK})["choices"][0]
    assert whole["finish_reason"] == "stop"
    assert whole["message"]["content"].startswith(choice["message"]["content"])
    several = tiny.answer({"messages": TALK, "max_tokens": 5, "temperature": 1.5, "n": 3, "seed": 1, "logprobs": True})
    assert [one["index"] for one in several["choices"]] == [0, 1, 2]
    assert len(several["choices"][0]["logprobs"]["content"]) == 5
    assert several["usage"]["completion_tokens"] == sum(len(one["logprobs"]["content"]) for one in several["choices"])


def test_details(tiny: Endpoint) -> None:
    parameters = {"max_new_tokens": 6, "details": True, "decoder_input_details": True, "seed": 4, "do_sample": True}
    (result,) = tiny.answer({"inputs": "Once upon a time", "parameters": parameters})
    details = result["details"]
    assert (details["finish_reason"], details["generated_tokens"], details["seed"]) == ("length", 6, 4)
    assert "".join(token["text"] for token in details["tokens"]) == result["generated_text"]
    assert [set(token) for token in details["tokens"]] == [{"id", "text", "logprob", "special"}] * 6
    assert "".join(token["text"] for token in details["prefill"]) == "Once upon a time"
    assert details["prefill"][0]["logprob"] is None
    assert all(token["logprob"] < 0 for token in details["prefill"][1:])


def test_details_of_an_answer_that_ends_by_itself(tiny: Endpoint) -> None:
    (result,) = tiny.answer({"inputs": [TALK], "parameters": {"details": True}})
    details = result["details"]
    assert details["finish_reason"] == "eos_token"
    assert details["tokens"][-1]["special"] is True
    assert details["tokens"][-1]["text"] == ""
    assert "".join(token["text"] for token in details["tokens"]) == result["generation"]["content"]


@pytest.mark.parametrize("streams", [{}, {"stream": True}])
def test_a_stream_tells_what_the_whole_answer_says(tiny: Endpoint, streams: Any) -> None:
    body = {"inputs": "The dog", "parameters": {"max_new_tokens": 10, "details": True, "temperature": 1.5, "seed": 3}}
    (expected,) = tiny.answer(body)
    reply = tiny.post(body | streams, "/invocations" if streams else "/invocations-response-stream")
    assert (reply.status, reply.headers["content-type"].partition(";")[0]) == (200, "text/event-stream")
    assert reply.body.startswith(b"data: {")
    assert reply.body.endswith(b"}\n\n")
    events = reply.events
    assert [event["index"] for event in events] == list(range(1, 11))
    assert "".join(event["token"]["text"] for event in events) == expected["generated_text"]
    assert [event["generated_text"] for event in events] == [None] * 9 + [expected["generated_text"]]
    assert events[-1]["details"] == {"finish_reason": "length", "generated_tokens": 10, "seed": 3}
    tokens = expected["details"]["tokens"]
    assert [event["token"]["id"] for event in events] == [token["id"] for token in tokens]
    logprobs = [event["token"]["logprob"] for event in events]
    assert logprobs == pytest.approx([token["logprob"] for token in tokens], abs=1e-4)


def test_a_stream_comes_as_it_is_written(tiny_model: ServedModel) -> None:
    """The first event is there long before the last: the client reads it while the model goes on."""
    go_on = threading.Event()

    class Slow(_Around):
        def generate(self, rows: Sequence[BatchRow]) -> None:
            take, count = BatchRow.append, 0

            def slowly(row: BatchRow, token: int, score: float) -> bool:
                nonlocal count
                count += 1
                assert count < 3 or go_on.wait(10)
                return take(row, token, score)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(BatchRow, "append", slowly)
                self.served.generate(rows)

    with listening(Slow(tiny_model)) as endpoint:
        connection = endpoint.connect()
        body = json.dumps({"inputs": "The dog", "parameters": {"max_new_tokens": 6}})
        connection.request("POST", "/invocations-response-stream", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        assert json.loads(response.readline().removeprefix(b"data: "))["index"] == 1
        assert not go_on.is_set()
        go_on.set()
        assert response.read().count(b"data: ") == 5
        connection.close()


def test_streams_of_the_other_forms(tiny: Endpoint) -> None:
    whole = tiny.answer({"messages": TALK})["choices"][0]["message"]["content"]
    reply = tiny.stream({"messages": TALK, "logprobs": True})
    assert reply.body.endswith(b"data: [DONE]\n\n")
    choices = [event["choices"][0] for event in reply.events]
    assert "".join(choice["delta"]["content"] for choice in choices) == whole
    assert choices[0]["delta"]["role"] == "assistant"
    assert [choice["finish_reason"] for choice in choices] == [None] * (len(choices) - 1) + ["stop"]
    assert {event["object"] for event in reply.events} == {"chat.completion.chunk"}
    assert len({event["id"] for event in reply.events}) == 1
    lines = tiny.stream({"inputs": [TALK]}, accept="application/jsonlines")
    assert lines.headers["content-type"] == "application/jsonlines"
    assert lines.events[-1]["generated_text"] == whole
    full = tiny.stream({"inputs": "The dog", "parameters": LIMIT | {"return_full_text": True}})
    assert full.events[-1]["generated_text"] == "The dog" + tiny.text("The dog", **LIMIT)
    not_streamed = tiny.stream({"inputs": "The dog", "parameters": LIMIT, "stream": False})
    assert not_streamed.json == tiny.answer({"inputs": "The dog", "parameters": LIMIT})


@pytest.mark.parametrize(
    ("body", "headers", "status", "line"),
    [
        (b"a,b\n1,2", {"content_type": "text/csv"}, 415, "Content-Type: text/csv: expected application/json"),
        ({"inputs": "a", "parameters": {"temperature": 0}}, {}, 400, "temperature: 0: expected a number above 0"),
        ({"inputs": "a"}, {"accept": "image/png"}, 406, "Accept: image/png: not supported; expected application/json"),
        ({"inputs": ["a"] * 1_000}, {}, 400, "needs 1,000 completions; this endpoint accepts at most 256 at once"),
        (b"x" * (MAX_BODY_BYTES + 1), {}, 413, "larger than the limit of 6,291,456 bytes"),
        (b"\xff", {}, 400, "the body: not UTF-8 at byte 0"),
    ],
)
def test_refusals(tiny: Endpoint, body: Any, headers: dict[str, str], status: int, line: str) -> None:
    result = tiny.error(body, **headers)
    assert result[0] == status
    assert line in result[1]


def test_other_doors_and_methods(tiny: Endpoint) -> None:
    for method, path, status in (("GET", "/", 404), ("GET", "/invocations", 405), ("POST", "/ping", 405)):
        reply = tiny.request(method, path)
        assert reply.status == status
        assert f"{method} {path}: not found; this endpoint serves GET /ping" in reply.json["error"]


def test_a_stream_that_cannot_be_is_refused_with_a_status(tiny: Endpoint) -> None:
    reply = tiny.stream({"inputs": ["a", "b"]})
    assert (reply.status, reply.json["error_type"]) == (400, "validation")


class _Around:
    """A model with something of the test's round it."""

    def __init__(self, served: ServedModel) -> None:
        self.served = served
        self.name, self.is_broken = served.name, False
        self.batches: list[int] = []

    def prepare_rows(self, request: InvocationRequest) -> list[BatchRow]:
        return self.served.prepare_rows(request)

    def can_batch(self, rows: Sequence[BatchRow]) -> bool:
        return self.served.can_batch(rows)

    def generate(self, rows: Sequence[BatchRow]) -> None:
        self.batches.append(len(rows))
        self.served.generate(rows)


BODIES: list[Any] = [
    {"inputs": "The dog", "parameters": {"max_new_tokens": 12}},
    {"inputs": "Once upon a time there was a king who", "parameters": {"max_new_tokens": 5}},
    {"inputs": "It was", "parameters": {"max_new_tokens": 12, "temperature": 1.3, "seed": 5, "details": True}},
    {"inputs": "It was", "parameters": {"max_new_tokens": 12, "top_p": 0.9, "seed": 6, "repetition_penalty": 1.4}},
    {"messages": TALK, "max_tokens": 9},
    {"inputs": "Tom has 3 apples", "parameters": {"max_new_tokens": 12, "no_repeat_ngram_size": 2, "stop": ["."]}},
    {"text_inputs": "The cat", "max_length": 14},
    {"inputs": "x", "parameters": {"max_new_tokens": 1}},
]


def answer_of(body: Any) -> Any:
    """What of a reply is the same whenever it is asked."""
    body = body["choices"] if isinstance(body, dict) and "choices" in body else body
    return json.loads(json.dumps(body), parse_float=lambda text: round(float(text), 4))


def test_what_is_asked_at_once_is_one_batch_and_each_is_answered_as_alone(tiny_model: ServedModel) -> None:
    around = _Around(tiny_model)
    with listening(around, max_delay=0.5, max_rows=len(BODIES)) as endpoint:
        with ThreadPoolExecutor(len(BODIES)) as pool:
            together = list(pool.map(endpoint.answer, BODIES))
        assert around.batches == [len(BODIES)]
    with listening(around, max_delay=0, max_rows=1) as endpoint:
        alone = [endpoint.answer(body) for body in BODIES]
    assert [answer_of(body) for body in together] == [answer_of(body) for body in alone]


def test_a_queue_that_is_full_says_so(tiny_model: ServedModel) -> None:
    begun, leave = threading.Event(), threading.Event()

    class Held(_Around):
        def generate(self, rows: Sequence[BatchRow]) -> None:
            begun.set()
            assert leave.wait(10)
            super().generate(rows)

    body = {"inputs": "a", "parameters": {"max_new_tokens": 2}}
    with listening(Held(tiny_model), max_waiting=1, max_delay=0, max_rows=1) as endpoint, ThreadPoolExecutor(2) as pool:
        first = pool.submit(endpoint.post, body)
        assert begun.wait(10)
        second = pool.submit(endpoint.post, body)
        queue = endpoint.app._queue
        assert queue is not None
        while not queue._queue:
            time.sleep(0.01)
        refused = endpoint.post(body)
        assert (refused.status, refused.json["error_type"]) == (503, "overloaded")
        leave.set()
        assert first.result().status == second.result().status == 200
        assert endpoint.post(body).status == 200


def test_who_hangs_up_is_answered_no_more(tiny_model: ServedModel) -> None:
    rows: list[BatchRow] = []
    begun = threading.Event()

    class Seen(_Around):
        def prepare_rows(self, request: InvocationRequest) -> list[BatchRow]:
            rows.extend(result := self.served.prepare_rows(request))
            return result

        def generate(self, some: Sequence[BatchRow]) -> None:
            begun.set()
            time.sleep(0.2)
            super().generate(some)

    body = json.dumps({"inputs": "a", "parameters": {"max_new_tokens": 1500, "temperature": 2.0}}).encode()
    for path in ("/invocations", "/invocations-response-stream"):
        rows.clear()
        begun.clear()
        with listening(Seen(tiny_model), max_delay=0) as endpoint:
            with socket.create_connection(("127.0.0.1", endpoint.port)) as raw:
                head = f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
                raw.sendall(head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body)
                assert begun.wait(10)
            deadline = time.monotonic() + 10
            while not rows[0].cancelled and time.monotonic() < deadline:
                time.sleep(0.01)
            assert rows[0].cancelled
        assert len(rows[0]._tokens) < 1500


def test_a_fault_nobody_foresaw_is_one_line_and_the_next_request_is_answered(tiny_model: ServedModel) -> None:
    class Odd(_Around):
        def prepare_rows(self, request: InvocationRequest) -> list[BatchRow]:
            if request.prompts[0].value == "odd":
                raise ZeroDivisionError("secret of the inside")
            return super().prepare_rows(request)

    with listening(Odd(tiny_model)) as endpoint:
        reply = endpoint.post({"inputs": "odd"})
        assert (reply.status, reply.json["error_type"]) == (500, "generation")
        assert reply.json["error"] == "ZeroDivisionError during generation; see the endpoint's log"
        assert endpoint.post({"inputs": "even", "parameters": {"max_new_tokens": 1}}).status == 200


def test_an_answer_that_breaks_off_says_so_in_the_stream(tiny_model: ServedModel) -> None:
    class Breaks(_Around):
        def generate(self, rows: Sequence[BatchRow]) -> None:
            rows[0].start()
            rows[0].append(500, -1.0)
            rows[0].fail(ValueError("boom"))

    with listening(Breaks(tiny_model)) as endpoint:
        reply = endpoint.stream({"inputs": "a"})
    assert reply.status == 200
    assert reply.events[0]["token"]["id"] == 500
    assert reply.events[1] == {"error": "ValueError during generation; see the endpoint's log",
                               "error_type": "generation"}  # fmt: skip
