"""Misspelt names of models: what is suggested for them, and for what nothing is."""

from __future__ import annotations

from pathlib import Path

import pytest

from luthier.catalog import hub
from luthier.catalog.locate import locate, suggest_model
from luthier.catalog.near_names import plain_name, suggest_name
from luthier.errors import ModelNotFoundError

# What people type -> the repository of the catalogue that they mean.
MISSPELT = {
    "HugginFaceTB/SmolLM2-135M-Instruct": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "HuggingFace/SmolLM2-135M-Instruct": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "HuggingFaceTB/SmoLM2-135M-Instruct": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "HuggingFaceTB/SmolLM-2-135M-Instruct": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "HuggingFaceTB/SmolLM2-135-Instruct": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "HuggingFaceTB/SmolLM2-135M-Instuct": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "HuggingFaceTB/SmolLM2_135M": "HuggingFaceTB/SmolLM2-135M",
    "HuggingFaceTB/SmolLM2-135m-base": "HuggingFaceTB/SmolLM2-135M",
    "HuggingFaceTB/SmolLM-3B": "HuggingFaceTB/SmolLM3-3B",
    "smollm/SmolLM3-3B": "HuggingFaceTB/SmolLM3-3B",
    "Qwen/Qwen2.5-05B": "Qwen/Qwen2.5-0.5B",
    "Qwen/Qwen-2.5-0.5B-Instruct": "Qwen/Qwen2.5-0.5B-Instruct",
    "Qwen/Qwen25-7B": "Qwen/Qwen2.5-7B",
    "Qwen2.5/Qwen2.5-7B-Instruct": "Qwen/Qwen2.5-7B-Instruct",
    "Qwen/Qwen2.5-7B-Chat": "Qwen/Qwen2.5-7B",
    "qwen/qwen3-0.6": "Qwen/Qwen3-0.6B",
    "Qwenn/Qwen3-8B": "Qwen/Qwen3-8B",
    "alibaba/Qwen3-4B": "Qwen/Qwen3-4B",
    "Qwen/Qwen3-4B-Instruct": "Qwen/Qwen3-4B-Instruct-2507",
    "meta/Llama-3.1-8B-Instruct": "meta-llama/Llama-3.1-8B-Instruct",
    "meta-llama/Llama-3.1-8b-Instuct": "meta-llama/Llama-3.1-8B-Instruct",
    "meta-llama/Llama3.1-8B": "meta-llama/Llama-3.1-8B",
    "metallama/Llama-3.2-1B": "meta-llama/Llama-3.2-1B",
    "facebook/Llama-2-7b-hf": "meta-llama/Llama-2-7b-hf",
    "meta-llama/Llama-2-7b": "meta-llama/Llama-2-7b-hf",
    "meta-llama/Llama-2-7b-chat": "meta-llama/Llama-2-7b-chat-hf",
    "meta-llama/Lama-2-13b-hf": "meta-llama/Llama-2-13b-hf",
    "mistral/Mistral-7B-v0.1": "mistralai/Mistral-7B-v0.1",
    "mistralai/Mistral-7B-v01": "mistralai/Mistral-7B-v0.1",
    "mistralai/Mistral-7B-Instruct-v.0.2": "mistralai/Mistral-7B-Instruct-v0.2",
    "mistral-ai/Mixtral-8x7B-Instruct-v0.1": "mistralai/Mixtral-8x7B-Instruct-v0.1",
    "google/gemma2-2b-it": "google/gemma-2-2b-it",
    "google/gemma-3-1b-instruct": "google/gemma-3-1b-it",
    "gogle/gemma-2b": "google/gemma-2b",
    "google/flan-t5-bse": "google/flan-t5-base",
    "google/flant5-large": "google/flan-t5-large",
    "microsoft/phi2": "microsoft/phi-2",
    "microsoft/Phi-3-mini-4k": "microsoft/Phi-3-mini-4k-instruct",
    "microsft/phi-4": "microsoft/phi-4",
    "tiiuae/falcon-7b-instuct": "tiiuae/falcon-7b-instruct",
    "tiuae/falcon-40b": "tiiuae/falcon-40b",
    "openai/gpt2-xl": "openai-community/gpt2-xl",
    "EleutherAI/gptj-6b": "EleutherAI/gpt-j-6b",
    "EleutherAI/gpt-neo-125": "EleutherAI/gpt-neo-125m",
    "EluetherAI/gpt-neo-2.7B": "EleutherAI/gpt-neo-2.7B",
    "mosaic/mpt-7b": "mosaicml/mpt-7b",
    "codellama/CodeLlama-7b-Pyhton-hf": "codellama/CodeLlama-7b-Python-hf",
    "code-llama/CodeLlama-13b": "codellama/CodeLlama-13b-hf",
    "allenai/OLMo2-1B": "allenai/OLMo-2-0425-1B",
    "deepseek/DeepSeek-R1-Distill-Qwen-1.5B": "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B",
    "databrick/dolly-v2-3b": "databricks/dolly-v2-3b",
    "bigscience/blomz-3b": "bigscience/bloomz-3b",
}
NOT_A_NAME = {
    "https://huggingface.co/Qwen/Qwen3-0.6B": "Qwen/Qwen3-0.6B",
    "huggingface.co/Qwen/Qwen3-0.6B/tree/main": "Qwen/Qwen3-0.6B",
    "hf.co/some-org/Some-Model-3B": "some-org/Some-Model-3B",
    "hf://google/gemma-2b": "google/gemma-2b",
    "HuggingFaceTB\\SmolLM2-135M": "HuggingFaceTB/SmolLM2-135M",
    "HuggingFaceTB/SmolLM2-135M/": "HuggingFaceTB/SmolLM2-135M",
    "meta-llama/Llama 3.1 8B": "meta-llama/Llama-3.1-8B",
    "Qwen2.5-05B": "Qwen2.5 0.5B",  # the title is a name, too
    "qwen2.5:0.5b": "qwen2.5-0.5b",
    "smollm2-135m-instuct": "smollm2-135m-instruct",
    "FALCON7BINSTRUKT": "Falcon7BInstruct",
    "gpt2-xxl": "gpt2-xl",
}
UNLIKE_ANY = ["some-org/some-model", "acme/customer-support-12b", "org/m", "nvidia/Nemotron-H-8B", "x/y", "zzzz"]


@pytest.fixture(autouse=True)
def _empty_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No model on this machine, no network."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.delenv("LUTHIER_MODELS", raising=False)
    monkeypatch.chdir(tmp_path)


def refusal(name: str) -> str:
    """What the user reads: the name is located, or the Hub is tried."""
    with pytest.raises(ModelNotFoundError) as caught:
        hub.fetch(locate(name), print)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.mark.parametrize(("name", "meant"), MISSPELT.items())
def test_a_misspelt_repository_is_answered_with_the_one_meant(name: str, meant: str) -> None:
    assert f"model {name!r} not found; did you mean {meant!r}?" in refusal(name)


@pytest.mark.parametrize(("name", "meant"), NOT_A_NAME.items())
def test_what_cannot_be_a_name_is_answered_with_the_name(name: str, meant: str) -> None:
    assert f"{name!r}; did you mean {meant!r}?" in refusal(name).replace(" not found", "")


@pytest.mark.parametrize("name", UNLIKE_ANY)
def test_a_name_unlike_any_is_answered_with_none(name: str) -> None:
    assert "did you mean" not in refusal(name)


def test_repositories_stored_on_this_machine_are_suggested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hub" / "models--acme--support-bot-12b").mkdir(parents=True)
    assert suggest_model("acme/suport-bot-12b") == "; did you mean 'acme/support-bot-12b'?"
    assert suggest_model("ACME/Support-Bot-12B") == "; did you mean 'acme/support-bot-12b'?"
    mirrored = tmp_path / "mirror" / "ours" / "Legal-7B"
    mirrored.mkdir(parents=True)
    (mirrored / "config.json").write_text("{}")
    assert suggest_model("our/legal-7b") == ""
    monkeypatch.setenv("LUTHIER_MODELS", str(tmp_path / "mirror"))
    assert "did you mean 'ours/Legal-7B'?" in refusal("our/legal-7b")


def test_folders_and_files_beside_the_path_are_suggested(tmp_path: Path) -> None:
    for name in ("my-model", "notes"):
        (tmp_path / "models" / name).mkdir(parents=True)
    (tmp_path / "models" / "my-model" / "config.json").write_text("{}")
    (tmp_path / "models" / "smollm2.Q4_1.gguf").write_bytes(b"GGUF")
    assert "did you mean 'models/my-model'?" in refusal("models/my-modle")
    assert "did you mean './models/my-model'?" in refusal("./models/my_model")
    assert f"did you mean '{tmp_path}/models/my-model'?" in refusal(f"{tmp_path}/models/mymodel")
    assert "did you mean 'models/smollm2.Q4_1.gguf'?" in refusal("models/smollm2.Q4_K.gguf")
    assert "did you mean" not in refusal("models/noted")  # no model in that folder


def test_the_same_digits_come_first() -> None:
    known = ["org/model-7b-v2", "org/model-8b-v1", "org/model-7b-v1"]
    assert suggest_name("orgg/modell-7b-v1", known) == "; did you mean 'org/model-7b-v1'?"
    assert suggest_name("orgg/modell-8b-v1", known) == "; did you mean 'org/model-8b-v1'?"


def test_plain_names_stay() -> None:
    for name in ("Qwen/Qwen3-0.6B", "gpt2-xl", "org/tree"):
        assert plain_name(name) == name
    assert plain_name("") == ""
