"""Conversations through the whole data room."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data.row_files import CHATML, Preparing, make_tokenizer, write_jsonl

from luthier.data.prepare import DataSettings, prepare
from luthier.data.tokenize import Tokenizer
from luthier.data.tokens import TokenStore
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


@pytest.mark.parametrize(
    ("turns", "trained_text"),
    [("assistant", "12 eggs<|im_end|>7<|im_end|>"), ("last", "7<|im_end|>"),
     ("all", "how many eggs?<|im_end|>12 eggs<|im_end|>how many eggs?<|im_end|>7<|im_end|>")],
)  # fmt: skip
def test_the_turns_asked_for_carry_loss(
    turns: str, trained_text: str, preparing: Preparing, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    seven = ASSISTANT | {"content": "7"}
    write_jsonl(tmp_path / "d" / "a.jsonl", rows([USER, ASSISTANT, USER, seven], [USER, ASSISTANT]))
    prepared = preparing(tmp_path / "d", train_on_turns=turns)
    assert prepared.turns == turns
    ids, trained = prepared.tokens.row(0)
    assert tokenizer.show(ids[trained]) == trained_text
    assert prepared.tokens.trained_counts[0] == trained.sum()
    held_out = (
        prepared.tokens if prepared.tokens.completion_only else TokenStore(prepared.tokens.folder, tokenizer.vocab_size)
    )
    ids, scored = held_out.row(0)
    assert tokenizer.show(ids[scored]) == trained_text.replace("how many eggs?<|im_end|>", ""), "answers are scored"
    example = next(prepared.examples(np.array([0])))
    prompt = tokenizer.prompt_ids(example)
    assert ids[: len(prompt)].tolist() == prompt
    assert example.completion == "7<|im_end|>"


def test_turns_are_prepared_apart_and_the_usual_ones_as_before(preparing: Preparing, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "d" / "a.jsonl", rows([USER, ASSISTANT], [USER, ASSISTANT]))
    prints = [preparing(tmp_path / "d").fingerprint]
    assert len(list((tmp_path / "cache").iterdir())) == 1
    prints += [preparing(tmp_path / "d", train_on_turns=turns).fingerprint for turns in ("assistant", "last", "all")]
    assert len(list((tmp_path / "cache").iterdir())) == 3
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3


def test_every_token_where_that_is_asked_for(preparing: Preparing, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "d" / "a.jsonl", rows([USER, ASSISTANT], [USER, ASSISTANT]))
    prepared = preparing(tmp_path / "d", train_on_turns="all", completion_only=False)
    _, trained = prepared.tokens.row(0)
    assert trained.tolist() == [False] + [True] * (len(trained) - 1)


def test_a_last_turn_that_says_nothing_is_dropped(preparing: Preparing, tmp_path: Path) -> None:
    blank = [USER, ASSISTANT, USER, ASSISTANT | {"content": " "}]
    write_jsonl(tmp_path / "d" / "a.jsonl", rows(blank, [USER, ASSISTANT]))
    assert preparing(tmp_path / "d").counts.dropped == 0
    assert preparing(tmp_path / "d", train_on_turns="last").counts.dropped == 1


def test_a_last_turn_that_is_cut_off_is_dropped(preparing: Preparing, tmp_path: Path) -> None:
    long = [USER, ASSISTANT, USER | {"content": "eggs " * 100}, ASSISTANT]
    write_jsonl(tmp_path / "d" / "a.jsonl", rows(long, [USER, ASSISTANT]))
    for turns, expected in (("assistant", (1, 0)), ("last", (0, 1)), ("all", (1, 0))):
        counts = preparing(tmp_path / "d", max_input_length=50, train_on_turns=turns).counts
        assert (counts.truncated, counts.dropped) == expected


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
