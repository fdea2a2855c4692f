"""Conversations through the whole data room."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data.row_files import CHATML, Preparing, make_tokenizer, write_jsonl, write_template
from rich.console import Console

from luthier.data import ledger
from luthier.data.prepare import DataSettings, prepare
from luthier.data.preview import as_json, coloured, show
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


MASKED = ASSISTANT | {"weight": 0}


def test_masked_turns_carry_no_loss_and_are_counted(preparing: Preparing, tokenizer: Tokenizer, tmp_path: Path) -> None:
    seven = ASSISTANT | {"content": "7"}
    write_jsonl(tmp_path / "d" / "a.jsonl", rows([USER, MASKED, USER, seven], [USER, ASSISTANT]))
    plain = write_jsonl(tmp_path / "p" / "a.jsonl", rows([USER, ASSISTANT, USER, seven], [USER, ASSISTANT])).parent
    for turns, text in (("assistant", "7<|im_end|>"), ("last", "7<|im_end|>"), ("all", "how many eggs?<|im_end|>" * 2)):
        prepared = preparing(tmp_path / "d", train_on_turns=turns)
        ids, trained = prepared.tokens.row(0)
        assert ids.tolist() == preparing(plain, train_on_turns=turns).tokens.row(0)[0].tolist(), "masks change no token"
        assert tokenizer.show(ids[trained]) == text + ("7<|im_end|>" if turns == "all" else "")
        assert prepared.masked_turns == (0 if turns == "last" else 1)
        green = [shown for shown, style in coloured(prepared, tokenizer, 0) if "green" in style]
        assert "".join(green) == tokenizer.show(ids[trained])
    prepared = preparing(tmp_path / "d")
    prepared.write_ledger(tmp_path / "ledger.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    assert [line["masked_turns"] for line in lines] == [1, 0]
    assert as_json(prepared)["masked_turns"] == 1
    screen = io.StringIO()
    show(prepared, tokenizer, Console(file=screen, width=100))
    assert "turns      loss on assistant turns, 1 masked" in screen.getvalue()
    assert "masked_turns" not in next(ledger.lines(preparing(plain).table, np.zeros(2, np.int8)))


def test_users_are_masked_too(preparing: Preparing, tokenizer: Tokenizer, tmp_path: Path) -> None:
    write_jsonl(
        tmp_path / "d" / "a.jsonl", rows([USER | {"mask": True}, ASSISTANT, USER | {"content": "why?"}, ASSISTANT])
    )
    ids, trained = preparing(tmp_path / "d", train_on_turns="all").tokens.row(0)
    assert tokenizer.show(ids[trained]) == "12 eggs<|im_end|>why?<|im_end|>12 eggs<|im_end|>"


def test_the_reason_why_a_row_teaches_nothing(preparing: Preparing, tmp_path: Path) -> None:
    empty = ASSISTANT | {"content": " "}
    write_jsonl(tmp_path / "d" / "a.jsonl", rows([USER, MASKED], [USER, empty], [USER, ASSISTANT, USER, MASKED]))
    masked = "all turns that would carry loss are masked"
    blank = "the assistant's turns that would carry loss have neither text nor a tool call"
    for turns, reasons in (("assistant", [masked, blank, None]), ("last", [masked, blank, masked])):
        if turns == "last":
            with pytest.raises(DataError, match="no training rows left: 2 of 3 rows are dropped, all turns that would"):
                preparing(tmp_path / "d", train_on_turns=turns)
            continue
        prepared = preparing(tmp_path / "d", train_on_turns=turns)
        prepared.write_ledger(tmp_path / "ledger.jsonl")
        lines = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
        assert [line["reason"] for line in lines] == reasons
        assert f"1 of 3 rows is dropped, {masked}: training/a.jsonl:1" in prepared.warnings
        assert f"1 of 3 rows is dropped, {blank}: training/a.jsonl:2" in prepared.warnings


def test_masks_where_every_token_is_trained(preparing: Preparing, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "d" / "a.jsonl", rows([USER, ASSISTANT], [USER, MASKED, USER, ASSISTANT]))
    with pytest.raises(
        DataError, match=r"a\.jsonl:2: the row masks turns, but completion_only_loss=False trains every"
    ):
        preparing(tmp_path / "d", completion_only=False)


def test_unread_keys_are_named_once_each(preparing: Preparing, tmp_path: Path) -> None:
    of_row = {f"field{number}": number for number in range(10)}
    of_message = {f"key{number}": [number] for number in range(10)}
    row = {"messages": [USER | of_message, ASSISTANT | {"id": None}], "source": None} | of_row
    write_jsonl(tmp_path / "d" / "a.jsonl", [row, row, {"messages": [USER | {"key3": "x"}, ASSISTANT]}])
    expected = dict.fromkeys(of_row, 2) | {f"messages[].{name}": 2 for name in of_message} | {"messages[].key3": 3}
    for _ in range(2):  # also from the cache
        prepared = preparing(tmp_path / "d")
        assert as_json(prepared)["unread_keys"] == expected
        (line,) = [warning for warning in prepared.warnings if "not read" in warning]
        assert line.startswith("20 keys are not read: 'field0' in 2 rows, ")
        assert all(line.count(f"'{name}' in {count} rows") == 1 for name, count in expected.items())
    write_jsonl(tmp_path / "e" / "a.jsonl", [{"messages": [USER, ASSISTANT], "score": number} for number in range(24)])
    assert "24 rows have 'score', which is not read" in preparing(tmp_path / "e").warnings


def test_loss_that_is_stated_but_not_trained_is_named(preparing: Preparing, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "d" / "a.jsonl", rows([USER | {"train": True}, ASSISTANT | {"train": True}]))
    assert preparing(tmp_path / "d").unread == {"messages[].train of role user": 1}
    assert preparing(tmp_path / "d", train_on_turns="all").unread == {}


def test_unread_keys_of_other_rows(preparing: Preparing, tmp_path: Path) -> None:
    write_template(tmp_path / "d", "{q}", "{a}")
    write_jsonl(tmp_path / "d" / "a.jsonl", [{"q": "1", "a": "2", "level": 3}, {"q": "1", "a": "2", "level": None}])
    prepared = preparing(tmp_path / "d")
    assert prepared.unread == {"level": 1}
    assert "1 row has 'level', which is not read" in prepared.warnings


def test_prompt_and_completion_as_message_lists_are_chat(
    preparing: Preparing, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    row = {"prompt": [USER, ASSISTANT, USER], "completion": [ASSISTANT | {"content": "7"}]}
    write_jsonl(tmp_path / "d" / "a.jsonl", [row])
    prepared = preparing(tmp_path / "d")
    assert prepared.kind == "chat"
    ids, trained = prepared.tokens.row(0)
    assert tokenizer.show(ids[trained]) == "7<|im_end|>"
    assert tokenizer.show(ids).count("12 eggs") == 1


def test_a_tool_that_the_template_does_not_write_refuses_the_row(preparing: Preparing, tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "count", "parameters": {}}}]
    write_jsonl(
        tmp_path / "d" / "a.jsonl", [{"messages": [USER, ASSISTANT]}, {"messages": [USER, ASSISTANT], "tools": tools}]
    )
    with pytest.raises(DataError) as caught:
        preparing(tmp_path / "d")
    assert str(caught.value) == "a.jsonl:2: the model's chat template does not write the row's tools, such as 'count'"
