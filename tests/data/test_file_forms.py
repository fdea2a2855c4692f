"""Files as people have them: read as the kind that their keys say, or refused with the way out; never guessed away."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data.row_files import Preparing, write_jsonl, write_template

from luthier.data.channel import open_channels
from luthier.data.kind import detect, resolve_kind
from luthier.errors import DataError

ALPACA = [{"instruction": f"i{n}", "context": "", "response": f"r{n}"} for n in range(3)]
CHAT = [{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": f"a{n}"}]} for n in range(3)]
SHAREGPT = [{"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]} for _ in range(3)]
PAIRS = [{"question": "2 + 2?", "answer": 4}, {"question": "3 + 3?", "answer": 6}]


def json_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    write_jsonl(path, rows)


def indented_array(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text(json.dumps(rows, indent=2), "utf-8")


def compressed(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))


def parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    pq.write_table(pa.Table.from_pylist(rows), path)


def csv(path: Path, rows: list[dict[str, Any]]) -> None:
    mark = "\t" if ".tsv" in path.name else ","
    lines = [mark.join(rows[0]), *(mark.join(str(value) for value in row.values()) for row in rows)]
    path.write_text("\n".join(lines) + "\n", "utf-8")


Writer = Callable[[Path, list[dict[str, Any]]], None]
FORMS: list[tuple[str, Writer, list[dict[str, Any]], str]] = [
    ("a.jsonl", json_lines, ALPACA, "instruction"),
    ("a.json", json_lines, ALPACA, "instruction"),
    ("a.json", indented_array, ALPACA, "instruction"),
    ("a.jsonl.gz", compressed, ALPACA, "instruction"),
    ("a.json.gz", compressed, ALPACA, "instruction"),
    ("a.jsonl", compressed, ALPACA, "instruction"),
    ("a.parquet", parquet, ALPACA, "instruction"),
    ("a.csv", csv, ALPACA, "instruction"),
    ("a.tsv", csv, ALPACA, "instruction"),
    ("a.json", indented_array, CHAT, "chat"),
    ("a.json", indented_array, SHAREGPT, "chat"),
    ("a.parquet", parquet, CHAT, "chat"),
    ("a.parquet", parquet, SHAREGPT, "chat"),
    ("a.jsonl.gz", compressed, CHAT, "chat"),
    ("a.json", indented_array, [{"text": "one"}, {"text": "two"}], "domain"),
    ("a.parquet", parquet, [{"text": "one", "id": "1"}], "domain"),
    ("a.csv", csv, [{"input": "a", "output": "b"}], "autopilot"),
    ("a.tsv", csv, [{"input": "a", "output": "b"}], "autopilot"),
]


@pytest.mark.parametrize(
    ("name", "write", "rows", "kind"), FORMS, ids=[f"{n}-{k}-{i}" for i, (n, _, _, k) in enumerate(FORMS)]
)
def test_a_form_is_read_as_what_its_keys_say(
    preparing: Preparing, tmp_path: Path, name: str, write: Writer, rows: list[dict[str, Any]], kind: str
) -> None:
    folder = tmp_path / "d"
    folder.mkdir()
    write(folder / name, rows)
    reference = tmp_path / "reference"
    reference.mkdir()
    (parquet if kind == "autopilot" else json_lines)(
        reference / ("a.parquet" if kind == "autopilot" else "a.jsonl"),
        [{key: value for key, value in row.items() if kind != "domain" or key == "text"} for row in rows],
    )
    assert detect(open_channels({"training": folder})[0]) == kind
    read, expected = (preparing(place, validation_split_ratio=0.0) for place in (folder, reference))
    assert read.kind == kind
    texts = [[example.pieces for example in data.examples(data.split.train)] for data in (read, expected)]
    assert texts[0] == texts[1] != []


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.json", "a.jsonl.gz"])
def test_a_template_names_the_columns(preparing: Preparing, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "d"
    folder.mkdir()
    {"csv": csv, "tsv": csv, "json": indented_array, "gz": compressed}[name.rpartition(".")[2]](folder / name, PAIRS)
    write_template(folder, "{question}", "{answer}")
    prepared = preparing(folder, validation_split_ratio=0.0)
    examples = list(prepared.examples(prepared.split.train))
    assert [(example.prompt.partition("\n")[0], example.completion) for example in examples] == [
        ("2 + 2?", "4"), ("3 + 3?", "6")
    ]  # fmt: skip


@pytest.mark.parametrize(("name", "write"), [("a.csv", csv), ("a.json", indented_array), ("a.parquet", parquet)])
def test_other_columns_are_refused_with_both_ways_out(
    preparing: Preparing, tmp_path: Path, name: str, write: Writer
) -> None:
    folder = tmp_path / "d"
    folder.mkdir()
    write(folder / name, [{"review": "Good.", "stars": "5"}])
    with pytest.raises(DataError) as caught:
        preparing(folder)
    message = str(caught.value)
    assert "needs 'instruction', 'context', 'response', which some rows lack" in message
    assert "add a template.json beside the rows" in message
    assert "or give --kind domain (instruction_tuned=False)" in message
    values = {"instruction_tuned": False, "chat_dataset": False}
    assert resolve_kind("auto", values, {"instruction_tuned"}, folder) == "domain"  # asked for: the first column
    prepared = preparing(folder, kind="domain", validation_split_ratio=0.0)
    assert f"{name}: no column 'Text' or 'text': using the first one, 'review'" in prepared.warnings


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "sep=,\ninput,output\na,b\n", "a.csv:1: the first line is Excel's 'sep=...', not a header"),
        ("a.csv", "input\toutput\na\tb\n", "a.csv:1: the columns are separated by tabs; name the file .tsv"),
        ("a.csv", "input;output\na;b\n", "a.csv:1: the columns are separated by semicolons; save it with commas"),
        ("a.csv", "Input,Output\na,b\n", "Autopilot needs; it has 'Input' (keys are case-sensitive)"),
        ("a.csv", ",input,output\n0,a,b\n", "unexpected column '' (a pandas index: write the table with index=False)"),
        ("a.jsonl", '[{"input": "a", "output": "b"}]\n', "an array of rows; write one row a line, or name"),
        ("a.json", '[{"id": 1, "data": {"text": "t"}, "annotations": []}]', "a.json:1: a Label Studio export;"),
        ("a.jsonl", '{\n "question": "a"\n}\n', "a row is one line of .jsonl: write it without indentation"),
        ("a.jsonl", '[\n {"question": "a"}\n]\n', "a row is one line of .jsonl: write it without indentation"),
    ],
)  # fmt: skip
def test_what_is_refused_says_what_it_is(
    preparing: Preparing, tmp_path: Path, name: str, content: str, message: str
) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / name).write_text(content, "utf-8")
    with pytest.raises(DataError) as caught:
        preparing(tmp_path / "d")
    assert message in str(caught.value)


def test_a_damaged_compressed_file_is_said(preparing: Preparing, tmp_path: Path) -> None:
    folder = tmp_path / "d"
    folder.mkdir()
    compressed(folder / "a.jsonl.gz", ALPACA * 50)
    whole = (folder / "a.jsonl.gz").read_bytes()
    (folder / "a.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"a.jsonl.gz.*: the compressed file ends early or is damaged; copy it again"):
        preparing(folder)


def test_a_saved_dataset_is_named(preparing: Preparing, tmp_path: Path) -> None:
    folder = tmp_path / "d"
    folder.mkdir()
    for name in ("dataset_info.json", "state.json", "data-00000-of-00001.arrow"):
        (folder / name).write_text("{}")
    with pytest.raises(DataError, match=r"a folder that datasets wrote with save_to_disk; .*to_json"):
        preparing(folder)


# Files named for their split


def lay(folder: Path, *names: str) -> Path:
    folder.mkdir()
    for place, name in enumerate(names):
        write_jsonl(folder / name, [{"instruction": f"{place}", "context": "", "response": f"{name}"}] * (place + 1))
    return folder


def test_files_named_for_their_split_are_each_in_theirs(preparing: Preparing, tmp_path: Path) -> None:
    folder = lay(
        tmp_path / "d", "train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl", "dev.jsonl", "test_1.jsonl"
    )
    prepared = preparing(folder)
    counts = [len(rows) for rows in (prepared.split.train, prepared.split.validation, prepared.split.test)]
    assert counts == [1 + 2, 3, 4]
    assert (
        "split by name: training: train-00000-of-00002.jsonl, train-00001-of-00002.jsonl; validation: dev.jsonl; "
        "test: test_1.jsonl" in prepared.warnings
    )


def test_names_that_say_one_split_say_nothing(preparing: Preparing, tmp_path: Path) -> None:
    for number, names in enumerate([("train_a.jsonl", "train_b.jsonl"), ("test.jsonl",), ("a.jsonl", "b.jsonl")]):
        prepared = preparing(lay(tmp_path / str(number), *names), validation_split_ratio=0.0)
        assert len(prepared.split.train) == sum(range(1, len(names) + 1))


def test_some_names_that_say_a_split_are_refused(preparing: Preparing, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        preparing(lay(tmp_path / "d", "train.jsonl", "extra.jsonl", "test.jsonl"))
    assert "test.jsonl is named for a split and extra.jsonl for none; name every file train*" in str(caught.value)
    with pytest.raises(DataError, match=r"no file is named train\*: test.jsonl, valid.jsonl"):
        preparing(lay(tmp_path / "e", "valid.jsonl", "test.jsonl"))


def test_folders_come_before_names(preparing: Preparing, tmp_path: Path) -> None:
    training = lay(tmp_path / "t", "train.jsonl", "test.jsonl")
    prepared = preparing(training, lay(tmp_path / "v", "a.jsonl"))
    assert len(prepared.split.train) == 3
    assert len(prepared.split.validation) == 1
