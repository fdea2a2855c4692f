"""Conversations through the whole data room."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from data_room.layout import CHATML, Preparing, make_tokenizer, write_jsonl
from luthier.data.prepare import DataSettings, prepare
from luthier.data.tokenize import Tokenizer
from luthier.errors import DataError

USER = {"role": "user", "content": "how many eggs?"}
ASSISTANT = {"role": "assistant", "content": "12 eggs"}
STRICT = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHATML


def rows(*dialogs: Any) -> list[dict[str, Any]]:
    return [{"dialog": dialog} for dialog in dialogs]


def test_every_assistant_turn_carries_loss(preparing: Preparing, tokenizer: Tokenizer, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "d" / "a.jsonl", rows([USER, ASSISTANT, USER, ASSISTANT]))
    prepared = preparing(tmp_path / "d")
    assert prepared.kind == "chat"
    ids, trained = prepared.tokens.row(0)
    assert tokenizer.show(ids[trained]) == "12 eggs<|im_end|>12 eggs<|im_end|>"
    assert tokenizer.eos_id not in ids
    example = next(prepared.examples(prepared.split.train))
    prompt = tokenizer.prompt_ids(example)
    assert ids[: len(prompt)].tolist() == prompt


def test_a_cut_conversation_keeps_its_first_turns(preparing: Preparing, tokenizer: Tokenizer, tmp_path: Path) -> None:
    dialog = [USER, ASSISTANT, USER | {"content": "eggs " * 100}, ASSISTANT]
    write_jsonl(tmp_path / "d" / "a.jsonl", rows(dialog, [USER | {"content": "eggs " * 100}, ASSISTANT]))
    prepared = preparing(tmp_path / "d", max_input_length=50)
    assert (prepared.counts.truncated, prepared.counts.dropped) == (1, 1)
    ids, trained = prepared.tokens.row(0)
    assert tokenizer.show(ids[trained]) == "12 eggs<|im_end|>"


def test_an_empty_answer_is_dropped(preparing: Preparing, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "d" / "a.jsonl", rows([USER, ASSISTANT], [USER, ASSISTANT | {"content": " "}]))
    prepared = preparing(tmp_path / "d")
    assert prepared.counts.dropped == 1


def test_bad_conversations_are_named_and_counted(preparing: Preparing, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "d" / "a.jsonl", rows([USER, ASSISTANT], [USER], [USER], "x"))
    with pytest.raises(DataError) as caught:
        preparing(tmp_path / "d")
    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("a.jsonl:2: the conversation does not end with the assistant")
    assert lines[0].endswith("(and 1 more such row)")
    assert lines[1].startswith("a.jsonl:4: 'dialog' must be a list of messages")


def test_rows_that_the_template_refuses_are_named(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(make_tokenizer(tmp_path / "t", chat_template=STRICT))
    system = {"role": "system", "content": "s"}
    write_jsonl(tmp_path / "d" / "a.jsonl", rows([USER, ASSISTANT], [system, USER, ASSISTANT]))
    with pytest.raises(DataError) as caught:
        prepare({"training": tmp_path / "d"}, DataSettings(), tokenizer, tmp_path / "cache")
    assert str(caught.value) == "a.jsonl:2: the model's chat template refuses this conversation: no system role"
    assert not list((tmp_path / "cache").iterdir())


def test_a_model_without_a_chat_template_is_refused(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(make_tokenizer(tmp_path / "t", chat_template=None))
    write_jsonl(tmp_path / "d" / "a.jsonl", rows([USER, ASSISTANT]))
    with pytest.raises(DataError, match="has no chat template"):
        prepare({"training": tmp_path / "d"}, DataSettings(), tokenizer, tmp_path / "cache")
