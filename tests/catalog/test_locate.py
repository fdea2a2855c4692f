"""Where a base model is looked for, and in which order."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from luthier.catalog import find
from luthier.catalog.locate import EMBEDDED, locate
from luthier.catalog.shape import entry_from_config
from luthier.errors import ModelNotFoundError

REPOSITORY = "openai-community/gpt2-xl"


def model_at(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    return folder.resolve()


def snapshot_at(cache: Path, repository: str = REPOSITORY, commit: str = "a" * 40) -> Path:
    """A model as huggingface_hub stores it: refs/main names the commit of a snapshot folder."""
    stored = cache / f"models--{repository.replace('/', '--')}"
    (stored / "refs").mkdir(parents=True)
    (stored / "refs" / "main").write_text(commit)
    return model_at(stored / "snapshots" / commit)


def refusal(model: str) -> str:
    with pytest.raises(ModelNotFoundError) as caught:
        locate(model, {})
    return str(caught.value)


def test_a_folder_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = model_at(tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for written in (str(folder), "mine", "./mine/", "~/mine"):
        found = locate(written, {})
        assert found.folder == folder
        assert found.entry == entry_from_config(written, folder)
        assert found.repository is None
        assert found.name == written


def test_the_embedded_model() -> None:
    for name in ("luthier/tiny", "tiny", "Luthier/Tiny"):
        found = locate(name, {"LUTHIER_MODELS": "/nowhere"})
        assert found.folder == EMBEDDED
        assert found.name == "luthier/tiny"
        assert found.entry is find("luthier/tiny")


def test_a_folder_goes_before_a_name_of_the_catalogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = model_at(tmp_path / "luthier" / "tiny")
    assert locate("luthier/tiny", {}).folder == folder
    (tmp_path / "gpt2-xl").mkdir()  # no model in it: the name still means the catalogue's
    assert locate("gpt2-xl", {}).entry is find("gpt2-xl")


@pytest.mark.parametrize("name", ["gpt2-xl", "GPT2-XL", "huggingface-textgeneration1-gpt-2-xl", REPOSITORY])
def test_the_mirror_goes_before_the_cache_of_the_hub(name: str, tmp_path: Path) -> None:
    mirrored = model_at(tmp_path / "mirror" / REPOSITORY)
    cached = snapshot_at(tmp_path / "hub")
    places = {"LUTHIER_MODELS": str(tmp_path / "mirror"), "HF_HUB_CACHE": str(tmp_path / "hub")}
    found = locate(name, places)
    assert (found.folder, found.name, found.repository) == (mirrored, "gpt2-xl", REPOSITORY)
    assert locate(name, places | {"LUTHIER_MODELS": str(tmp_path)}).folder == cached


def test_the_mirror_holds_models_the_catalogue_does_not_know(tmp_path: Path) -> None:
    folder = model_at(tmp_path / "some" / "Model-7B.v2")
    found = locate("some/Model-7B.v2", {"LUTHIER_MODELS": str(tmp_path)})
    assert (found.folder, found.name) == (folder, "some/Model-7B.v2")
    assert found.entry == entry_from_config("some/Model-7B.v2", folder)


def test_the_mirror_may_be_written_from_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = model_at(tmp_path / "models" / REPOSITORY)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert locate("gpt2-xl", {"LUTHIER_MODELS": "~/models"}).folder == folder


@pytest.mark.parametrize("variable", ["HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", "HOME"])
def test_the_cache_is_where_the_hub_library_keeps_it(
    variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    xdg = "huggingface/hub"
    below = {"HF_HUB_CACHE": "", "HF_HOME": "hub", "XDG_CACHE_HOME": xdg, "HOME": f".cache/{xdg}"}
    folder = snapshot_at(tmp_path / below[variable])
    monkeypatch.setenv("HOME", str(tmp_path if variable == "HOME" else tmp_path / "elsewhere"))
    assert locate("gpt2-xl", {variable: str(tmp_path)}).folder == folder


def test_a_snapshot_that_is_not_finished_does_not_count(tmp_path: Path) -> None:
    (snapshot_at(tmp_path) / "config.json").unlink()
    assert locate("gpt2-xl", {"HF_HUB_CACHE": str(tmp_path)}).folder is None


def test_otherwise_a_repository_with_the_places_that_were_tried(tmp_path: Path) -> None:
    found = locate("gpt2-xl", {"HF_HUB_CACHE": str(tmp_path)})
    cache = str(tmp_path / "models--openai-community--gpt2-xl")
    assert (found.folder, found.repository) == (None, REPOSITORY)
    assert found.searched == ("LUTHIER_MODELS (not set)", cache)
    found = locate("gpt2-xl", {"HF_HUB_CACHE": str(tmp_path), "LUTHIER_MODELS": "/mirror"})
    assert found.searched == (f"/mirror/{REPOSITORY}", cache)
    assert locate("org/unheard-of", {}).repository == "org/unheard-of"


def test_a_model_outside_the_catalogue_has_an_entry_once_its_files_are_there(tmp_path: Path) -> None:
    found = locate("org/unheard-of", {})
    assert found.entry is None
    folder = model_at(tmp_path / "fetched")
    assert found.with_folder(folder).entry == entry_from_config("org/unheard-of", folder)
    assert (found.with_folder(folder).folder, found.with_folder(folder).repository) == (folder, "org/unheard-of")
    known = locate("gpt2-xl", {})
    assert known.with_folder(folder).entry is find("gpt2-xl")  # the catalogue knows more than a config.json says


def test_an_entry_without_weights_of_its_own_has_those_of_the_one_it_names(tmp_path: Path) -> None:
    folder = model_at(tmp_path / "meta-llama" / "Llama-2-7b-hf")
    found = locate("Llama 2 7B Neuron", {"LUTHIER_MODELS": str(tmp_path)})
    assert (found.name, found.folder, found.repository) == ("llama-2-7b-neuron", folder, "meta-llama/Llama-2-7b-hf")


def test_an_entry_of_the_user_s_own_is_located(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "{id: m, name: Mine, source: org/m, architecture: A, parameters: 1, context_length: 8, licence: {name: MIT},"
        " kinds: [domain]}"
    )
    found = locate("mine", {"LUTHIER_ENTRIES": str(tmp_path)})
    assert (found.name, found.repository) == ("m", "org/m")
    assert refusal("mine").startswith("unknown model 'mine'")


@pytest.mark.parametrize(
    ("name", "meant"), [("gpt2-xxl", "gpt2-xl"), ("lama-2-7b", "llama-2-7b"), ("tinny", "tiny"),
                        ("luthier-tiny", "luthier/tiny"), ("Llama2-7b-x", "Llama2-7B")],
)  # fmt: skip
def test_an_unknown_name_is_answered_with_the_closest(name: str, meant: str) -> None:
    assert refusal(name).startswith(f"unknown model {name!r}; did you mean {meant!r}?")


def test_a_name_like_no_other() -> None:
    assert refusal("zzzz").startswith("unknown model 'zzzz'; `luthier models` lists the names")
    assert "unknown model ''" in refusal("")


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    assert refusal(str(tmp_path)) == (
        f"{tmp_path}: the folder has neither config.json nor a GGUF file; expected a model in Hugging Face layout, "
        "or one file *.gguf"
    )


@given(st.text(max_size=60) | st.from_regex(r"[\w.-]{1,12}/[\w.-]{1,12}", fullmatch=True))
@example("x" * 5000)
@example("a/" + "x" * 5000)
@example("é/" + "é" * 200)
@example("~no-such-user/model")
@example("a\x00b")
@example("a\nb")
def test_any_name_is_located_or_refused_in_one_line(name: str) -> None:
    message = ""
    try:
        found = locate(name, {})
        assert found.folder or found.repository
    except ModelNotFoundError as error:
        message = str(error)
    assert len(message.splitlines()) <= 1
