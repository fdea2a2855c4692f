"""A selection of entries: each side of it, and words that no entry has."""

from __future__ import annotations

from typing import Any

import pytest

from luthier.catalog import entries
from luthier.catalog.selection import Selection
from luthier.errors import SettingError


def ids(**wanted: Any) -> list[str]:
    selection = Selection(**wanted)
    return [entry.id for entry in entries() if entry in selection]


def test_nothing_asked_is_everything() -> None:
    assert ids() == [entry.id for entry in entries()]


def test_a_text_in_any_name() -> None:
    assert ids(text="FALCON7B") == ["falcon-7b", "falcon-7b-instruct"]
    assert ids(text="huggingface-text2text") == [f"flan-t5-{size}" for size in ("base", "large", "small", "xl", "xxl")]
    assert ids(text="zzzz") == []


def test_a_kind() -> None:
    assert set(ids(kind="domain")) == {entry.id for entry in entries() if "domain" in entry.kinds}
    assert "flan-t5-xl" not in ids(kind="Domain")
    assert "stable-diffusion-2-1" not in ids(kind="instruction")


def test_an_architecture_by_class_or_model_type() -> None:
    assert ids(architecture="bloom") == ids(architecture="bloomforcausallm") == [
        "bloom-3b", "bloom-7b1", "bloomz-3b", "bloomz-7b1",
    ]  # fmt: skip
    assert ids(architecture="StableDiffusionPipeline") == ["stable-diffusion-2-1"]


def test_a_licence_and_whether_it_must_be_accepted() -> None:
    assert "gpt2-xl" in ids(licence="mit")
    assert set(ids(licence="llama 3.1")) == {"llama-3.1-8b", "llama-3.1-8b-instruct"}
    gated, opened = ids(gated=True), ids(gated=False)
    assert sorted(gated + opened) == ids()
    assert "llama-2-7b" in gated
    assert "luthier/tiny" in opened


@pytest.mark.parametrize(
    ("max_parameters", "inside", "outside"),
    [
        ("8B", "llama-3.1-8b", "gemma-7b"),  # 8.03 and 8.54 billion: rounded as written
        ("8.03b", "llama-3.1-8b", "qwen3-8b"),
        ("8.0B", "llama-3.1-8b", "qwen3-8b"),
        ("135M", "smollm2-135m", "smollm2-360m"),
        ("134515008", "smollm2-135m", "smollm2-360m"),
        ("134515007", "luthier/tiny", "smollm2-135m"),
    ],
)
def test_a_maximum_size_rounded_as_written(max_parameters: str, inside: str, outside: str) -> None:
    assert inside in ids(max_parameters=max_parameters)
    assert outside not in ids(max_parameters=max_parameters)


def test_autopilot() -> None:
    assert len(ids(autopilot=True)) == 18


def test_all_sides_together() -> None:
    found = ids(text="llama", kind="chat", gated=True, max_parameters="7B", autopilot=True, architecture="llama")
    assert found == ["llama-2-7b", "llama-2-7b-chat"]


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"kind": "chatt"}, "--kind chatt; did you mean 'chat'?; expected one of autopilot, chat, domain, instruction"),
        ({"architecture": "lama"}, "--architecture lama; did you mean 'llama'?; expected one of ApertusForCausalLM, "),
        ({"licence": "appache"}, "--licence appache; did you mean 'Apache-2.0'?; expected one of Apache-2.0, "),
        ({"max_parameters": "8X"}, "--max-parameters 8X: expected a size such as 8B, 1.5B or 500M"),
        ({"max_parameters": "0B"}, "--max-parameters 0B: expected "),
        ({"max_parameters": "-1"}, "--max-parameters -1: expected "),
        ({"max_parameters": "1e9"}, "--max-parameters 1e9: expected "),
    ],
)
def test_a_word_that_no_entry_has(wanted: dict[str, str], said: str) -> None:
    with pytest.raises(SettingError) as caught:
        Selection(**wanted)  # type: ignore[arg-type]
    assert str(caught.value).startswith(said)
    assert len(str(caught.value).splitlines()) == 1
