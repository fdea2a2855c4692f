"""docs/requests.md: each example is sent and gets the documented response; its table lists every parameter."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from serving.endpoints import Endpoint

from luthier.serving.parameters import PARAMETERS

PAGE = (Path(__file__).parents[2] / "docs" / "requests.md").read_text("utf-8")
BLOCKS = re.findall(r"```(?:json|text) (request|answer|stream|refusal)\n(.*?)```", PAGE, re.DOTALL)
EXAMPLES = list(zip(BLOCKS[::2], BLOCKS[1::2], strict=True))


def shape(value: Any) -> Any:
    """A JSON value without what differs from model to model: its texts and numbers."""
    if isinstance(value, dict):
        return {name: shape(item) for name, item in value.items()}
    if isinstance(value, list):
        return [shape(item) for item in value]
    return "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__


@pytest.mark.parametrize(("request_block", "answer_block"), EXAMPLES, ids=range(len(EXAMPLES)))
def test_example(tiny: Endpoint, request_block: tuple[str, str], answer_block: tuple[str, str]) -> None:
    assert request_block[0] == "request"
    body, (kind, text) = json.loads(request_block[1]), answer_block
    reply = tiny.post(body)
    if kind == "refusal":
        assert (reply.status, reply.json) == (400, json.loads(text))
        return
    assert reply.status == 200, reply.body
    if kind == "stream":
        expected = [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line]
        assert [shape(event) for event in reply.events] == [shape(event) for event in expected]
        assert reply.body.decode().count("\n\n") == len(expected)
        return
    assert shape(reply.json) == shape(json.loads(text))


def test_every_kind_of_request_has_its_example() -> None:
    keys = {next(iter(json.loads(block[1]))) for block, _ in EXAMPLES}
    assert keys == {"fields", "inputs", "messages", "text_inputs"}
    assert {kind for _, (kind, _) in EXAMPLES} == {"answer", "stream", "refusal"}


def test_the_table_names_every_parameter() -> None:
    table = PAGE.partition("## Parameters")[2].partition("## Streams")[0]
    assert sorted(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == sorted(PARAMETERS)
