from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data.row_files import Preparing, write_jsonl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luthier.data.prepare import Dataset, DataSettings, prepare
from luthier.data.tokenize import Tokenizer
from luthier.errors import DataError

TEXT = "".join(f"Line {number}: the cat sleeps by the fire \u2028 and a fox counts eggs.\r\n" for number in range(400))


def file(folder: Path, name: str, content: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content.encode())
    return folder


def joined(prepared: Dataset, indices: np.ndarray[Any, Any]) -> list[int]:
    return [number for index in indices for number in prepared.tokens.row(int(index))[0].tolist()]


def test_a_text_file_loses_nothing_and_splits_are_contiguous(
    preparing: Preparing, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    prepared = preparing(file(tmp_path / "data", "a.txt", TEXT), max_input_length=64, test_split_ratio=0.1)
    assert prepared.kind == "domain"
    splits = [prepared.split.train, prepared.split.validation, prepared.split.test]
    ids = [number for split in splits for number in joined(prepared, split)]
    assert tokenizer.show(ids) == TEXT + "<|endoftext|>"
    assert ids.count(tokenizer.eos_id) == 1
    lengths = prepared.tokens.lengths[prepared.split.train]
    assert set(lengths[:-2].tolist()) == {64}
    assert lengths.min() >= 2
    assert prepared.split.row_splits.tolist() == sorted(prepared.split.row_splits.tolist())


def test_every_token_of_a_block_but_the_first_is_trained(preparing: Preparing, tmp_path: Path) -> None:
    prepared = preparing(file(tmp_path / "data", "a.txt", TEXT), max_input_length=64)
    _, trained = prepared.tokens.row(0)
    assert trained.tolist() == [False] + [True] * 63
    assert prepared.tokens.trained_counts[0] == 63


def test_a_short_corpus_is_one_short_block(preparing: Preparing, tmp_path: Path) -> None:
    prepared = preparing(file(tmp_path / "data", "a.txt", "The cat sleeps."))
    assert len(prepared.split.train) == 1
    assert [example.completion for example in prepared.examples(prepared.split.train)] == ["The cat sleeps."]


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=40), min_size=1, max_size=30),
    window=st.integers(2, 30),
)
def test_every_token_of_every_record_is_in_one_block(
    tokenizer: Tokenizer, tmp_path: Path, texts: list[str], window: int
) -> None:
    write_jsonl(tmp_path / "data" / "a.jsonl", [{"text": text} for text in texts])
    chosen = DataSettings(kind="domain", max_input_length=window)
    try:
        prepared = prepare({"training": tmp_path / "data"}, chosen, tokenizer, tmp_path / "cache")
    except DataError as error:
        assert "no training rows left" in str(error)  # noqa: PT017
        return
    rows = prepared.split.row_splits
    for number, split in enumerate((prepared.split.train, prepared.split.validation)):
        kept = "".join(text + "<|endoftext|>" for text, of in zip(texts, rows, strict=True) if of == number)
        ids = joined(prepared, split)
        assert tokenizer.show(ids) == kept
        assert prepared.counts.tokens >= len(ids)
    assert prepared.counts.dropped == sum(not text.strip() for text in texts)
    assert (prepared.tokens.lengths <= window).all()
    assert window == 2 or (prepared.tokens.lengths[1:] > 1).all()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", 'id,text\n1,"NA"\n2,"the\ncat"\n3,"007"\n'),
        ("a.csv", 'Text,id\n"NA",1\n"the\ncat",2\n"007",3\n'),
        ("a.json", '[{"text": "NA"}, {"text": "the\\ncat"}, {"text": 7}]'.replace("7}", '"007"}')),
        ("a.json", '{"text": "NA"}\n{"text": "the\\ncat"}\n{"text": "007"}\n'),
        ("a.jsonl", '{"text": "NA"}\n{"text": "the\\ncat"}\n{"text": "007"}\n'),
    ],
)
def test_the_text_column(preparing: Preparing, tokenizer: Tokenizer, tmp_path: Path, name: str, content: str) -> None:
    prepared = preparing(file(tmp_path / "data", name, content), validation_split_ratio=0.0)
    assert prepared.kind == "domain"
    text = tokenizer.show(joined(prepared, prepared.split.train))
    assert text == "NA<|endoftext|>the\ncat<|endoftext|>007<|endoftext|>"
    assert not any("first one" in said for said in prepared.warnings)


def test_the_first_column_with_a_warning(preparing: Preparing, tokenizer: Tokenizer, tmp_path: Path) -> None:
    data = file(tmp_path / "data", "a.csv", "body,TEXT\nthe cat,x\nthe dog,y\n")
    prepared = preparing(data, validation_split_ratio=0.0)
    assert tokenizer.decode(joined(prepared, prepared.split.train)) == "the catthe dog"
    assert "a.csv: no column 'Text' or 'text': using the first one, 'body'" in prepared.warnings


def test_documents_without_an_end(preparing: Preparing, tokenizer: Tokenizer, tmp_path: Path) -> None:
    texts = ["the cat", "the dog", "a fox"]
    write_jsonl(tmp_path / "data" / "a.jsonl", [{"text": text} for text in texts])
    data = tmp_path / "data"
    closed, running = (preparing(data, validation_split_ratio=0.0, append_eod=eod) for eod in (True, False))
    with_ends = joined(closed, closed.split.train)
    assert with_ends.count(tokenizer.eos_id) == 3
    assert with_ends[-1] == tokenizer.eos_id
    assert joined(running, running.split.train) == [number for number in with_ends if number != tokenizer.eos_id]
    stream = preparing(file(tmp_path / "stream", "a.txt", TEXT), validation_split_ratio=0.0, append_eod=False)
    assert tokenizer.eos_id not in joined(stream, stream.split.train)


def test_one_single_token_is_nothing_to_learn_from(preparing: Preparing, tokenizer: Tokenizer, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "data" / "a.jsonl", [{"text": "a"}])
    assert not tokenizer.prefix_ids
    assert len(preparing(tmp_path / "data", validation_split_ratio=0.0).split.train) == 1
    with pytest.raises(DataError, match=r"the train text is a single token.*leave append_eod at True"):
        preparing(tmp_path / "data", validation_split_ratio=0.0, append_eod=False)


def test_exactly_one_file_a_channel(preparing: Preparing, tmp_path: Path) -> None:
    data = file(tmp_path / "data", "a.txt", TEXT)
    file(data, "b.txt", TEXT)
    with pytest.raises(DataError, match="exactly one file in the training channel; it contains 2"):
        preparing(data)


def test_a_supplied_validation_file(preparing: Preparing, tmp_path: Path) -> None:
    data = file(tmp_path / "data", "a.txt", TEXT)
    prepared = preparing(data, file(tmp_path / "v", "v.txt", "The dog.\n"))
    assert len(prepared.split.validation) == 1
    assert [example.completion for example in prepared.examples(prepared.split.validation)] == ["The dog.\n"]


def test_the_ledger_counts_records(preparing: Preparing, tmp_path: Path) -> None:
    rows = [{"text": "the cat"}, {"text": " "}, {"text": "a fox"}]
    write_jsonl(tmp_path / "data" / "a.jsonl", rows)
    prepared = preparing(tmp_path / "data", validation_split_ratio=0.0)
    prepared.write_ledger(tmp_path / "l.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "l.jsonl").read_text().splitlines()]
    assert [line["fate"] for line in lines] == ["kept", "dropped", "kept"]
    assert lines[1]["reason"] == "the text is empty"
    assert sum(line["tokens"] for line in lines) == int(prepared.tokens.lengths.sum())


def test_a_null_text_is_refused(preparing: Preparing, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "data" / "a.jsonl", [{"text": "x"}, {"text": None}])
    with pytest.raises(DataError, match=r"a\.jsonl:2: 'text' is null"):
        preparing(tmp_path / "data", kind="domain")


def test_split_settings_cut_other_blocks_and_cached_equals_fresh(preparing: Preparing, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "data" / "a.jsonl", [{"text": f"text number {number}"} for number in range(50)])
    one, two = preparing(tmp_path / "data", split_seed=1), preparing(tmp_path / "data", split_seed=2)
    assert joined(one, one.split.train) != joined(two, two.split.train)
    again = preparing(tmp_path / "data", split_seed=1)
    assert joined(one, one.split.train) == joined(again, again.split.train)
    assert again.warnings == one.warnings


def test_one_very_long_line(preparing: Preparing, tokenizer: Tokenizer, tmp_path: Path) -> None:
    text = "the cat and the dog " * 15_000
    prepared = preparing(file(tmp_path / "data", "a.txt", text), validation_split_ratio=0.0)
    assert tokenizer.decode(joined(prepared, prepared.split.train)) == text
