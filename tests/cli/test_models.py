"""`luthier models`: the list at 100 columns, its filters, and the card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from child import Luthier
from typer.testing import CliRunner

from luthier.catalog import entries
from luthier.cli.app import app
from luthier.cli.models import size
from luthier.errors import LuthierError, ModelNotFoundError, SettingError, UserError


@pytest.fixture(autouse=True)
def hundred_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")


def shown(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, ["models", *map(str, arguments)], standalone_mode=False)
    if result.exception:
        raise result.exception
    return str(result.stdout)


def listed(*arguments: str | Path) -> list[str]:
    return [card["id"] for card in json.loads(shown(*arguments, "--json"))]


def test_each_model_is_one_line_of_at_most_100_columns() -> None:
    lines = [line.rstrip() for line in shown().splitlines()]
    assert max(map(len, lines)) <= 100
    assert not any("…" in line for line in lines)
    for entry in entries():
        row = [line for line in lines if line.split()[:1] == [entry.id]]
        assert len(row) == 1
        assert f"{entry.context_length:,}" in row[0]
        assert entry.licence.name.removesuffix(" License") in row[0]


def test_models_are_grouped_by_architecture_the_smallest_first() -> None:
    lines = shown("--architecture", "gpt_neo").splitlines()
    order = [line.split()[0] for line in lines if line.startswith(("GPTNeo", "  gpt"))]
    assert order == ["GPTNeoForCausalLM", "gpt-neo-125m", "gpt-neo-1.3b", "gpt-neo-2.7b"]


def test_a_row() -> None:
    row = next(line for line in shown().splitlines() if line.split()[:1] == ["llama-2-13b"])
    assert row.split() == ["llama-2-13b", "13B", "4,096", "Llama", "2", "Community", "*", "i", "a", "c", "d", "7,000"]
    row = next(line for line in shown().splitlines() if line.split()[:1] == ["luthier/tiny"])
    assert row.split()[-1] == "yes"


def test_filters() -> None:
    assert listed("--match", "flan", "--max-parameters", "1B") == ["flan-t5-base", "flan-t5-large", "flan-t5-small"]
    assert listed("--autopilot", "--gated", "--kind", "chat", "--licence", "llama 2", "--architecture", "llama") == [
        "llama-2-13b", "llama-2-13b-chat", "llama-2-7b", "llama-2-7b-chat",
    ]  # fmt: skip
    assert "llama-2-7b" not in listed("--open")
    assert shown("--match", "zzzz") == "no model in the catalogue matches; remove a filter\n"
    assert listed("--match", "zzzz") == []


def test_at_hand_lists_downloaded_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    assert listed("--at-hand") == ["luthier/tiny"]
    folder = tmp_path / "models" / "openai-community" / "gpt2-xl"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    monkeypatch.setenv("LUTHIER_MODELS", str(tmp_path / "models"))
    assert listed("--at-hand") == ["gpt2-xl", "luthier/tiny"]
    assert json.loads(shown("gpt2-xl", "--json"))["at"] == str(folder)


def test_the_card_of_a_gated_model() -> None:
    card = shown("GEMMA-2B-INSTRUCT")
    for words in (
        "Gemma Terms of Use (must be accepted with --accept-eula)", "https://ai.google.dev/gemma/terms",
        "huggingface-llm-gemma-2b-instruct", "2.51B (2,506,172,416)", "lora_r=64", "max_input_length=1024",
        "weight_decay: at least 1e-08", "eager, sdpa, flash, packs rows", "not on this machine",
    ):  # fmt: skip
        assert words in card
    assert [line for line in card.splitlines() if line.startswith("checked")] == [
        line for line in card.splitlines() if "default_hyperparameters" in line
    ]
    assert max(len(line.rstrip()) for line in card.splitlines()) <= 100


def test_the_card_of_an_autopilot_model_with_templates() -> None:
    card = shown("Falcon7BInstruct")
    assert "Falcon7BInstruct: at most 1,000 rows of 1,024 tokens" in card
    assert "'USER: ' + message['content'] + '\\n'" in shown("CALM2-7B-Chat")
    assert "Apache-2.0 (needs no acceptance)" in card
    assert "'{prompt}'" in shown("flan-t5-base")


def test_the_card_of_a_model_that_cannot_be_tuned() -> None:
    for name, needs in (("Stable Diffusion 2.1", "image model"), ("llama-2-7b-neuron", "AWS Neuron devices")):
        card = shown(name)
        assert needs in card
        assert "cannot be tuned" in card


def test_the_card_as_json_is_the_entry() -> None:
    card: dict[str, Any] = json.loads(shown("Llama2-7B", "--json"))
    assert card["licence"] == {"name": "Llama 2 Community License", "url": "https://ai.meta.com/llama/license/",
                               "eula": True}  # fmt: skip
    assert card["autopilot"] == {"name": "Llama2-7B", "rows": 10000, "tokens": 2048}
    assert card["shape"]["hidden_size"] == 4096
    assert card["at"] is None


def test_the_card_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["OurForCausalLM"], "n_positions": 64}')
    card = shown(tmp_path)
    assert "OurForCausalLM" in card
    assert "not known: see the model's source" in card


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (["gpt2-xxl"], ModelNotFoundError, "unknown model 'gpt2-xxl'; did you mean 'gpt2-xl'?"),
        (
            ["Qwen/Qwen3-06B"],
            ModelNotFoundError,
            "model 'Qwen/Qwen3-06B' is neither in the catalogue nor on this machine; did you mean 'Qwen/Qwen3-0.6B'? ",
        ),
        (
            ["org/unheard-of"],
            ModelNotFoundError,
            "model 'org/unheard-of' is neither in the catalogue nor on this machine (searched ",
        ),
        (["gpt2-xl", "--kind", "chat"], UserError, "gpt2-xl: a model's card takes no filters"),
        (["gpt2-xl", "--at-hand"], UserError, "gpt2-xl: a model's card takes no filters"),
        (["--kind", "chatt"], SettingError, "did you mean 'chat'?"),
        (["--architecture", "LamaForCausalLM"], SettingError, "did you mean 'LlamaForCausalLM'?"),
        (["--licence", "appache"], SettingError, "did you mean 'Apache-2.0'?"),
        (["--max-parameters", "many"], SettingError, "expected a size such as 8B"),
    ],
)
def test_errors_are_one_line(arguments: list[str], error: type[LuthierError], words: str) -> None:
    with pytest.raises(error) as caught:
        shown(*arguments)
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_exit_codes_and_the_list_in_a_narrow_pipe(luthier: Luthier, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = luthier("models", "--kind", "poem")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert luthier("models", "falcon-8b").returncode == 2
    right = luthier("models", "--match", "redpajama")
    assert right.returncode == 0
    assert "redpajama-incite-instruct-3b" in right.stdout


@pytest.mark.parametrize(
    ("count", "words"), [(5_180_672, "5.18M"), (1_557_611_200, "1.56B"), (999_885_952, "1B"), (900, "900")]
)
def test_size_formats_a_parameter_count(count: int, words: str) -> None:
    assert size(count) == words


# The command that trains


@pytest.mark.parametrize("name", ["Stable Diffusion 2.1", "meta-textgenerationneuron-llama-2-13b"])
def test_a_model_that_cannot_be_tuned_is_refused_before_a_folder_is_created(name: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "p", "completion": "c"}\n')
    arguments = ["tune", str(tmp_path / "rows.jsonl"), "--model", name, "--accept-eula", "--out", str(tmp_path / "run")]
    result = CliRunner().invoke(app, arguments, standalone_mode=False)
    assert isinstance(result.exception, UserError)
    assert "cannot be tuned. It " in str(result.exception)
    assert not (tmp_path / "run").exists()


def test_a_model_s_own_range_bounds_what_is_set(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "p", "completion": "c"}\n')
    arguments = ["tune", str(tmp_path / "rows.jsonl"), "--model", "llama-2-7b", "--accept-eula", "--set", "seed=2000"]
    result = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "run")], standalone_mode=False)
    assert isinstance(result.exception, SettingError)
    assert str(result.exception).startswith("seed=2000: expected ")
