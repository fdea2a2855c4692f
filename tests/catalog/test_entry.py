"""A catalogue entry: what its YAML may hold, its names, and entries of the user's own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from luthier.catalog import entries, find
from luthier.catalog.entry import Entry, check_kind, check_tunable, parse_for, read_entry
from luthier.catalog.locate import locate
from luthier.errors import SettingError, UserError

SOUND = {
    "id": "m", "name": "Mine", "source": "org/m", "architecture": "LlamaForCausalLM", "parameters": 1,
    "context_length": 8, "licence": {"name": "MIT"}, "kinds": ["domain"],
}  # fmt: skip


def text_of(**changes: Any) -> str:
    return yaml.safe_dump({name: value for name, value in (SOUND | changes).items() if value is not None})


def read(**changes: Any) -> Entry:
    return read_entry("m.yaml", text_of(**changes))


def refusal(**changes: Any) -> str:
    with pytest.raises(UserError) as caught:
        read(**changes)
    message = str(caught.value)
    assert message.startswith("m.yaml: ")
    assert len(message.splitlines()) == 1
    return message.removeprefix("m.yaml: ")


# The file


def test_a_minimal_entry() -> None:
    entry = read(aliases=["Mini"])
    assert entry.kinds == ("domain",)
    assert entry.names == ("m", "org/m", "Mini", "Mine")
    assert (entry.revision, entry.autopilot, entry.licence.eula, entry.attention.packing) == (None, None, False, False)
    assert entry.is_tunable


def test_a_full_entry() -> None:
    entry = read(
        licence={"name": "L", "url": "https://x.org/l", "eula": True},
        autopilot={"name": "M1", "rows": 10, "tokens": 20},
        attention={"kernels": ["eager", "sdpa"], "packing": True},
        hyperparameter_ranges={"epoch": {"minimum": 2, "maximum": 4}, "learning_rate": {"maximum": 0.5}},
        shape={"model_type": "llama", "attention_types": [["a"], 2]},
    )
    assert (entry.licence.name, entry.licence.url, entry.licence.eula) == ("L", "https://x.org/l", True)
    assert entry.autopilot is not None
    assert (entry.autopilot.rows, entry.autopilot.tokens) == (10, 20)
    assert (entry.attention.kernels, entry.attention.packing) == (("eager", "sdpa"), True)
    assert entry.hyperparameter_ranges["epoch"] == {"minimum": 2, "maximum": 4}
    assert entry.shape["attention_types"] == [["a"], 2]
    assert "M1" in entry.names


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"colour": "red"}, "unknown field 'colour'"),
        ({"kind": ["domain"]}, "unknown field 'kind'; did you mean 'kinds'?"),
        ({"licence": None}, "missing field 'licence'"),
        ({"name": None, "colour": 1}, "unknown field 'colour'; missing field 'name'"),
        ({"revision": 3}, "revision: expected text"),
        ({"parameters": "7B"}, "parameters: expected a whole number"),
        ({"kinds": "domain"}, "kinds: expected a list of words"),
        ({"aliases": [1]}, "aliases: expected a list of words"),
        ({"licence": "MIT"}, "licence: expected a mapping"),
        ({"licence": {"name": "MIT", "adress": "x"}}, "unknown field 'licence.adress'"),
        ({"licence": {"url": "x"}}, "missing field 'licence.name'"),
        ({"licence": {"name": "L", "eula": "yes"}}, "licence.eula: expected true or false"),
        ({"licence": {"name": "L", "eula": True}},
         "licence.url: expected the URL of the text that must be accepted"),
        ({"autopilot": {"name": "M", "rows": 1}}, "missing field 'autopilot.tokens'"),
        ({"default_template": {"prompt": "p"}}, "missing field 'default_template.completion'"),
        ({"kinds": ["domain", "poetry"]}, "kinds: expected some of instruction, autopilot, chat, domain"),
        ({"kinds": []}, "description: expected the reason why it cannot be tuned, as kinds is empty"),
        ({"attention": {"kernels": ["flesh"], "packing": True}},
         "attention.kernels: expected some of eager, sdpa, flash"),
        ({"verified": ["colour"]}, "verified: expected some of architecture, parameters, context_length, licence, "
                                   "lora_targets, autopilot, default_hyperparameters"),
        ({"source": "a/b/c"}, "source: expected ORG/NAME of the Hub"),
        ({"hyperparameter_ranges": {"epoch": 3}},
         "hyperparameter_ranges: expected {NAME: {minimum: NUMBER, maximum: NUMBER}}"),
        ({"hyperparameter_ranges": {"epoch": {"most": 3}}},
         "hyperparameter_ranges: expected {NAME: {minimum: NUMBER, maximum: NUMBER}}"),
        ({"hyperparameter_ranges": {"epoch": {"minimum": "3"}}},
         "hyperparameter_ranges: expected {NAME: {minimum: NUMBER, maximum: NUMBER}}"),
        ({"default_hyperparameters": {"epcoh": 3}}, "unknown hyperparameter 'epcoh'; did you mean 'epoch'?"),
    ],
)  # fmt: skip
def test_a_faulty_entry_is_refused_by_file_and_field(changes: dict[str, Any], said: str) -> None:
    assert refusal(**changes) == said


def test_a_default_outside_of_the_entry_s_own_range_is_refused() -> None:
    said = refusal(default_hyperparameters={"epoch": 9}, hyperparameter_ranges={"epoch": {"maximum": 4}})
    assert said.startswith("epoch=9: expected ")


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "word"])
def test_a_file_that_is_no_mapping_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"^m\.yaml: expected a mapping of fields$"):
        read_entry("m.yaml", text)


def test_a_file_that_is_no_yaml_is_refused_by_its_line() -> None:
    with pytest.raises(UserError, match=r"^m\.yaml:3: not YAML: "):
        read_entry("m.yaml", "id: a\nname: [b\n: c")


# Names


def test_each_name_counts_once_whatever_its_case() -> None:
    assert read(name="M", aliases=["ORG/M", "mm"]).names == ("m", "org/m", "mm")


def test_borrowed_weights_lend_no_name() -> None:
    assert read(source="gpt2-xl").names == ("m", "Mine")
    assert read(source="embedded").names == ("m", "Mine")


# What may be done with it


def test_a_model_without_kinds_is_refused_with_what_it_needs() -> None:
    check_tunable(None)
    check_tunable(read())
    with pytest.raises(UserError, match=r"^m cannot be tuned\. It needs wings\.$"):
        check_tunable(read(kinds=[], description="It needs wings."))


def test_kinds() -> None:
    check_kind(None, "chat")
    check_kind(read(), "domain")
    with pytest.raises(UserError, match=r"^m cannot be tuned on chat data; it takes domain$"):
        check_kind(read(), "chat")


def test_defaults_and_ranges_reach_the_hyperparameters() -> None:
    entry = read(default_hyperparameters={"epoch": 3}, hyperparameter_ranges={"epoch": {"minimum": 2, "maximum": 4}})
    assert parse_for(entry, {})["epoch"] == 3
    assert parse_for(entry, {"epochs": "4"})["epoch"] == 4
    for outside in ("1", "5"):
        with pytest.raises(SettingError, match=f"epochs?={outside}: expected "):
            parse_for(entry, {"epoch": outside})
        assert parse_for(None, {"epoch": outside})["epoch"] == int(outside)


# The user's own entries


def test_adding_a_model_is_adding_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = len(entries())
    (tmp_path / "mine.yaml").write_text(text_of(aliases=["my model"]))
    (tmp_path / "notes.txt").write_text("no entry")
    monkeypatch.setenv("LUTHIER_ENTRIES", str(tmp_path))
    assert len(entries()) == before + 1
    for name in ("m", "ORG/M", "My Model", "mine"):
        assert find(name) == read(aliases=["my model"])
    found = locate("my model")
    assert (found.name, found.repository, found.entry) == ("m", "org/m", find("m"))
    monkeypatch.delenv("LUTHIER_ENTRIES")
    assert find("org/m") is None


def test_a_name_that_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.yaml").write_text(text_of(aliases=["Falcon 7B"]))
    monkeypatch.setenv("LUTHIER_ENTRIES", str(tmp_path))
    with pytest.raises(UserError, match=r"^catalogue: 'Falcon 7B' names both falcon-7b and m; rename one$"):
        find("m")


def test_a_faulty_file_of_the_user_s_is_named_with_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.yaml").write_text(text_of(colour="red"))
    monkeypatch.setenv("LUTHIER_ENTRIES", str(tmp_path))
    with pytest.raises(UserError, match=rf"^{tmp_path}/mine\.yaml: unknown field 'colour'$"):
        entries()


# Entries that extend a family or another entry


def test_an_entry_may_extend_a_model_or_a_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = {"id": "mine", "name": "Mine", "source": "org/mine", "extends": "llama-2-7b"}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(own | {"shape": {"vocab_size": 7}, "lora_targets": ["q_proj"]}))
    sized = {"parameters": 5, "default_hyperparameters": {"epoch": 9}}
    family = own | sized | {"id": "other", "name": "Other", "source": "org/other", "extends": "llama-2"}
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(family))
    monkeypatch.setenv("LUTHIER_ENTRIES", str(tmp_path))
    base, mine, other = find("llama-2-7b"), find("mine"), find("other")
    assert base is not None
    assert mine is not None
    assert other is not None
    assert mine == replace(
        base, id="mine", name="Mine", source="org/mine", aliases=(), autopilot=None, verified=(),
        shape={**base.shape, "vocab_size": 7}, lora_targets=("q_proj",),
    )  # fmt: skip
    assert (other.attention, other.licence, other.parameters) == (base.attention, base.licence, 5)
    assert other.default_hyperparameters == {**base.default_hyperparameters, "epoch": 9}


@pytest.mark.parametrize(
    ("extends", "said"),
    [
        ("lama-2", "extends: unknown family or model 'lama-2'; did you mean 'llama-2'?"),
        (3, "extends: unknown family or model 3"),
        ("m", "extends: 'm' extends itself"),
    ],
)
def test_what_cannot_be_extended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extends: str | int, said: str
) -> None:
    (tmp_path / "mine.yaml").write_text(text_of(extends=extends))
    monkeypatch.setenv("LUTHIER_ENTRIES", str(tmp_path))
    with pytest.raises(UserError) as caught:
        entries()
    assert str(caught.value) == f"{tmp_path}/mine.yaml: {said}"


def test_a_folder_of_entries_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTHIER_ENTRIES", "/nowhere/at/all")
    with pytest.raises(UserError, match=r"^LUTHIER_ENTRIES=/nowhere/at/all: no such folder"):
        entries()
