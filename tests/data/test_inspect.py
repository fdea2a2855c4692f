"""`python -m luthier.data inspect` as a program: exit codes, JSON, and what a person sees."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data.row_files import Preparing, write_jsonl, write_template
from rich.console import Console

from luthier.data.preview import as_json, coloured, histogram, show
from luthier.data.tokenize import Tokenizer

CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "max_position_embeddings": 64}


@pytest.fixture
def model(tokenizer_folder: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    for file in tokenizer_folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


def inspect(data: Path, model: Path, as_json: bool) -> subprocess.CompletedProcess[str]:
    request: dict[str, Any] = {
        "channels": {"training": str(data)}, "model": str(model), "kind": "auto", "hyperparameters": {},
        "json": as_json,
    }  # fmt: skip
    environment = os.environ | {"LUTHIER_CACHE": str(model.parent / "cache")}
    return subprocess.run(
        [sys.executable, "-m", "luthier.data", "inspect", "--request", "-"],
        input=json.dumps(request), capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip


def test_it_says_which_turns_are_trained(preparing: Preparing, tokenizer: Tokenizer, tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "how many?"}, {"role": "assistant", "content": "12"}]
    write_jsonl(tmp_path / "chat" / "a.jsonl", [{"messages": messages}] * 3)
    for turns, words in (("assistant", "assistant turns"), ("last", "the last turn"), ("all", "all turns")):
        prepared = preparing(tmp_path / "chat", train_on_turns=turns)
        screen = io.StringIO()
        show(prepared, tokenizer, Console(file=screen, width=100))
        assert f"turns      loss on {words}" in screen.getvalue()
        assert as_json(prepared)["train_on_turns"] == turns
        green = [text for text, style in coloured(prepared, tokenizer, 0) if "green" in style]
        assert green == (["how many?<|im_end|>"] if turns == "all" else []) + ["12<|im_end|>"]
    write_jsonl(tmp_path / "text" / "a.jsonl", [{"text": "how many?"}] * 3)
    assert as_json(preparing(tmp_path / "text"))["train_on_turns"] is None


def test_json_has_the_promised_keys(model: Path, tmp_path: Path) -> None:
    write_template(tmp_path / "data", "{q}\n", "{a}")
    rows = [{"q": f"q{n}", "a": "é\u2028"} for n in range(10)]
    write_jsonl(tmp_path / "data" / "a.jsonl", [*rows, {"q": "x " * 99, "a": ""}])
    answer = inspect(tmp_path / "data", model, True)
    assert answer.returncode == 0, answer.stderr
    content = json.loads(answer.stdout)
    counts = ("rows", "kept", "truncated", "dropped", "tokens", "completion_tokens")
    assert {"kind", *counts, "problems", "warnings", "examples"} <= content.keys()
    assert (content["kind"], content["rows"], content["kept"], content["dropped"]) == ("instruction", 11, 10, 1)
    assert content["problems"] == []
    assert content["max_input_length"] == 64
    assert content["examples"][0] == {
        "source": "a.jsonl:1", "prompt": "q0\n\n\n### Response:\n", "completion": "é\u2028",
    }  # fmt: skip


def test_a_refusal_exits_2_with_a_line_for_each_problem(model: Path, tmp_path: Path) -> None:
    write_template(tmp_path / "data", "{q}\n", "{a}")
    write_jsonl(tmp_path / "data" / "a.jsonl", [{"q": "1", "A": "2"}, {"q": None, "a": "2"}])
    answer = inspect(tmp_path / "data", model, True)
    assert answer.returncode == 2
    assert len(json.loads(answer.stdout)["problems"]) == 2
    lines = answer.stderr.splitlines()
    assert [line.startswith("luthier: error: a.jsonl:") for line in lines] == [True, True]
    assert "Traceback" not in answer.stderr


def test_a_table_for_people(model: Path, tmp_path: Path) -> None:
    write_template(tmp_path / "data", "{q}\n", "{a}")
    write_jsonl(tmp_path / "data" / "a.jsonl", [{"q": f"q{n}", "a": "yes"} for n in range(10)])
    answer = inspect(tmp_path / "data", model, False)
    assert answer.returncode == 0, answer.stderr
    for part in ("instruction data", "template.json", "train 8, validation 2, test 0", "tokens in a row", "a.jsonl:1"):
        assert part in answer.stdout


def test_trained_tokens_are_coloured(preparing: Preparing, tokenizer: Tokenizer, tmp_path: Path) -> None:
    write_template(tmp_path / "data", "{q}\n", "{a}")
    write_jsonl(tmp_path / "data" / "a.jsonl", [{"q": "ask \x1b[31m", "a": "yes"}])
    parts = list(coloured(preparing(tmp_path / "data"), tokenizer, 0))
    assert [style for _, style in parts] == ["dim", "bold green"]
    assert parts[0][0] == "ask ␛[31m\n\n\n### Response:\n"
    assert parts[1][0] == "yes<|endoftext|>"


@pytest.mark.parametrize("lengths", [[], [5], [1, 2, 3], list(range(1, 2000))])
def test_the_histogram_counts_every_row(lengths: list[int]) -> None:
    text = histogram(np.array(lengths, np.int64)).plain
    counted = sum(int(line.split()[-1].replace(",", "")) for line in text.splitlines() if lengths)
    assert counted == len(lengths)
