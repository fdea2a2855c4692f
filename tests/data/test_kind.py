from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data.row_files import Preparing, write_jsonl, write_template

from luthier.data.channel import open_channels
from luthier.data.kind import detect, resolve_kind
from luthier.errors import DataError, SettingError

CHAT = [{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}]


def lay(folder: Path, kind: str) -> Path:
    folder.mkdir()
    if kind == "chat":
        write_jsonl(folder / "a.jsonl", CHAT)
    elif kind == "instruction":
        write_jsonl(folder / "a.jsonl", [{"instruction": "i", "context": "", "response": "r"}])
    elif kind == "autopilot":
        (folder / "a.csv").write_text("input,output\na,b\n")
    elif kind == "parquet":
        pq.write_table(pa.table({"output": ["b"], "input": ["a"]}), folder / "a.parquet")
    else:
        (folder / "a.txt").write_text("text")
    return folder


@pytest.mark.parametrize("kind", ["chat", "instruction", "autopilot", "domain"])
def test_detected_from_the_content(tmp_path: Path, kind: str) -> None:
    assert detect(open_channels({"training": lay(tmp_path / "d", kind)})[0]) == kind


def test_parquet_is_autopilot_and_a_text_column_is_domain(tmp_path: Path) -> None:
    assert detect(open_channels({"training": lay(tmp_path / "d", "parquet")})[0]) == "autopilot"
    (tmp_path / "a.csv").write_text("id,text\n1,x\n")
    assert detect(open_channels({"training": tmp_path / "a.csv"})[0]) == "domain"


def test_a_template_makes_chat_keys_plain_fields(tmp_path: Path) -> None:
    folder = lay(tmp_path / "d", "chat")
    write_template(folder, "{messages}", "{answer}")
    assert detect(open_channels({"training": folder})[0]) == "instruction"


@pytest.mark.parametrize(
    ("asked", "given", "data", "expected"),
    [
        ("auto", {}, "instruction", "instruction"),
        ("auto", {}, "chat", "chat"),
        ("auto", {"instruction_tuned": True}, "instruction", "instruction"),
        ("auto", {"instruction_tuned": True}, "autopilot", "autopilot"),
        ("auto", {"chat_dataset": True}, "chat", "chat"),
        ("auto", {"instruction_tuned": False}, "chat", "chat"),
        ("auto", {"instruction_tuned": False, "chat_dataset": True}, "chat", "chat"),
        ("auto", {"chat_dataset": False}, "instruction", "instruction"),
        ("auto", {"instruction_tuned": False, "chat_dataset": False}, "domain", "domain"),
        ("auto", {"instruction_tuned": False, "chat_dataset": False}, "instruction", "domain"),
        ("auto", {"instruction_tuned": False}, "instruction", "domain"),
        ("domain", {}, "instruction", "domain"),
        ("instruction", {"instruction_tuned": True}, "instruction", "instruction"),
        ("domain", {"instruction_tuned": False}, "domain", "domain"),
        ("auto", {"instruction_tuned": True, "chat_dataset": True}, "chat", SettingError),
        ("chat", {"instruction_tuned": True}, "chat", SettingError),
        ("instruction", {"chat_dataset": True}, "chat", SettingError),
        ("instruction", {"instruction_tuned": False}, "instruction", SettingError),
        ("chat", {"chat_dataset": False}, "chat", SettingError),
        ("auto", {"instruction_tuned": True}, "chat", SettingError),
        ("auto", {"instruction_tuned": True}, "domain", SettingError),
        ("auto", {"chat_dataset": False}, "chat", SettingError),
        ("poetry", {}, "chat", SettingError),
    ],
)
def test_the_kind_is_settled(tmp_path: Path, asked: str, given: dict[str, bool], data: str, expected: Any) -> None:
    folder = lay(tmp_path / "d", data)
    values = {"instruction_tuned": False, "chat_dataset": False} | given
    if expected is SettingError:
        with pytest.raises(SettingError):
            resolve_kind(asked, values, given.keys(), folder)
    else:
        assert resolve_kind(asked, values, given.keys(), folder) == expected


def autopilot(folder: Path, content: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "a.csv").write_text(content)
    return folder


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("input,output,id\na,b,1\n", "a.csv:2: unexpected column 'id'; expected exactly 'input' and 'output'"),
        ("Input,output\na,b\n", "lacks 'input', which Autopilot needs; it has 'Input' (keys are case-sensitive)"),
        ("input,text\na,b\n", "the row lacks 'output'"),
    ],
)
def test_autopilot_takes_exactly_its_two_columns(
    preparing: Preparing, tmp_path: Path, content: str, message: str
) -> None:
    with pytest.raises(DataError) as caught:
        preparing(autopilot(tmp_path / "d", content), kind="autopilot")
    assert message in str(caught.value)


def test_autopilot_cells_reach_the_model_verbatim(preparing: Preparing, tmp_path: Path) -> None:
    data = autopilot(tmp_path / "d", 'output,input\n007,"NA\nx"\nNone,null\n')
    prepared = preparing(data, validation_split_ratio=0.0)
    examples = list(prepared.examples(prepared.split.train))
    assert [(example.prompt, example.completion) for example in examples] == [
        ("NA\nx\n\n### Response:\n", "007"), ("null\n\n### Response:\n", "None"),
    ]  # fmt: skip
    assert prepared.template_origin == "the Autopilot columns"


def test_parquet_nulls_and_types_are_refused_by_row(preparing: Preparing, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    cells = pa.table({"input": ["a", None, "c", None], "output": pa.array([1, 2, 3, 4])})
    pq.write_table(cells, tmp_path / "d" / "a.parquet")
    with pytest.raises(DataError) as caught:
        preparing(tmp_path / "d")
    assert str(caught.value).splitlines() == [
        "a.parquet:1: 'output' is a column of type int64; expected strings (and 3 more such rows)",
        "a.parquet:2: 'input' is null; give text, or remove the row (and 1 more such row)",
    ]


def test_csv_and_parquet_do_not_mix(preparing: Preparing, tmp_path: Path) -> None:
    training = autopilot(tmp_path / "t", "input,output\na,b\n")
    with pytest.raises(DataError, match="CSV and Parquet files are mixed"):
        preparing(training, lay(tmp_path / "v", "parquet"))


def test_a_template_beside_a_table_renders_it(preparing: Preparing, tmp_path: Path) -> None:
    folder = autopilot(tmp_path / "d", "input,output\na,b\n")
    write_template(folder, "Q: {input}", "{output}")
    prepared = preparing(folder, validation_split_ratio=0.0)
    assert prepared.kind == "instruction"
    assert next(prepared.examples(prepared.split.train)).prompt.startswith("Q: a")


@pytest.mark.parametrize("kind", ["autopilot", "domain"])
def test_a_template_that_does_not_apply_is_said(preparing: Preparing, tmp_path: Path, kind: str) -> None:
    folder = autopilot(tmp_path / "d", "input,output\na,b\n")
    write_template(folder, "{input}", "{output}")
    warning = f"template.json is not used: {kind} data needs none; for rows that it renders give --kind instruction"
    assert warning in preparing(folder, kind=kind).warnings
