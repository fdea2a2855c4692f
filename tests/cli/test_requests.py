"""Engine commands other than tune: what they check, and the request that they pass on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from child import Luthier
from typer.testing import CliRunner

from luthier.catalog.entry import KINDS, entries
from luthier.cli import cache
from luthier.cli.app import app
from luthier.cli.models import size
from luthier.cli.options import Kind
from luthier.data.cache import key_of
from luthier.errors import ModelNotFoundError, RunFolderError, SettingError, UserError
from luthier.jobfolder import JobFolder
from luthier.jobspec import JobSpec


def invoke(*arguments: str | Path) -> Any:
    """What the command returns; its error, raised."""
    result = CliRunner().invoke(app, list(map(str, arguments)), standalone_mode=False)
    if result.exception:
        raise result.exception
    return result.return_value


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "p", "completion": "c"}\n')
    return path


@pytest.fixture
def run(tmp_path: Path, rows: Path) -> Path:
    JobFolder(tmp_path / "run").create(JobSpec(model="luthier/tiny"), {"training": rows})
    return tmp_path / "run"


def test_the_kinds_match_the_catalogue() -> None:
    assert Kind.__args__ == ("auto", *KINDS)  # type: ignore[attr-defined]


def test_inspect(rows: Path) -> None:
    call = invoke("inspect", rows, "--test", rows, "--set", "epochs=4", "--max-truncated", "0.5", "--json")
    assert (call.module, call.arguments) == ("luthier.data", ("inspect", "--request", "-"))
    assert call.request == {
        "channels": {"training": str(rows), "test": str(rows)},
        "model": "luthier/tiny",
        "kind": "auto",
        "hyperparameters": {"epoch": "4"},
        "max_truncated": 0.5,
        "json": True,
    }


def test_generate(run: Path, rows: Path) -> None:
    call = invoke("generate", run, "hello", "--max-new-tokens", "5")
    assert (call.module, call.arguments) == ("luthier.evaluation", ("generate",))
    assert call.request == {
        "target": str(run), "text": "hello", "file": None, "max_new_tokens": 5, "beams": 1, "raw": False,
        "device": "auto", "json": False,
    }  # fmt: skip
    assert invoke("generate", "luthier/tiny", "--file", rows).request["file"] == str(rows)


@pytest.mark.parametrize("arguments", [["luthier/tiny"], ["luthier/tiny", "x", "--file", "y"]])
def test_generate_needs_a_text_or_a_file(arguments: list[str]) -> None:
    with pytest.raises(UserError, match="either TEXT or --file"):
        invoke("generate", *arguments)


def test_generate_refuses_an_unknown_model() -> None:
    with pytest.raises(ModelNotFoundError, match="unknown model 'tiny-luthier'"):
        invoke("generate", "tiny-luthier", "x")


def test_evaluate(rows: Path) -> None:
    call = invoke("evaluate", "luthier/tiny", rows, "--shots", "3", "--kind", "instruction", "--score-rows", "all")
    assert call.arguments == ("evaluate",)
    assert call.request == {
        "target": "luthier/tiny", "channels": {"training": str(rows)}, "kind": "instruction", "shots": 3,
        "device": "auto", "hyperparameters": {}, "score_rows": -1, "json": False, "out": None,
    }  # fmt: skip


def test_compare_and_doctor(run: Path) -> None:
    assert invoke("compare", run, "--json").request == {"run": str(run), "json": True}
    assert invoke("doctor").request == {"json": False}


def test_export(run: Path, tmp_path: Path) -> None:
    call = invoke("export", run, "--merged")
    assert (call.module, call.arguments) == ("luthier.evaluation", ("export",))
    target = str(run / "export" / "merged")
    assert call.request == {"run": str(run), "form": "merged", "out": target, "plain": False, "fp32": False}
    assert invoke("export", run, "--adapter", "--plain").request["plain"] is True
    assert invoke("export", run, "--merged", "--fp32").request["fp32"] is True
    for flags in (("--merged", "--plain"), ("--adapter", "--fp32")):
        with pytest.raises(UserError, match="--plain goes with --adapter, and --fp32 with --merged"):
            invoke("export", run, *flags)
    with pytest.raises(UserError, match="choose the form"):
        invoke("export", run)
    with pytest.raises(RunFolderError, match="exists and is not empty"):
        invoke("export", run, "--adapter", "--out", run)


def test_pretrain(rows: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("vocab_size: 300\n")
    call = invoke("pretrain", rows, "--config", recipe, "--out", tmp_path / "model", "--set", "seed=3")
    assert call.module == "luthier.training.pretrain"
    assert call.request == {
        "corpus": str(rows), "out": str(tmp_path / "model"), "config": str(recipe), "hyperparameters": {"seed": "3"},
    }  # fmt: skip
    with pytest.raises(SettingError):
        invoke("pretrain", rows, "--config", recipe, "--out", tmp_path / "model", "--set", "sede=3")
    with pytest.raises(UserError, match="no such file"):
        invoke("pretrain", rows, "--config", tmp_path / "none", "--out", tmp_path / "model")


def test_models_lists_every_entry(luthier: Luthier) -> None:
    shown = luthier("models")
    assert shown.returncode == 0
    for entry in entries():
        assert entry.id in shown.stdout
    listed = json.loads(luthier("models", "--json").stdout)
    assert [card["id"] for card in listed] == [entry.id for entry in entries()]


def test_a_card_is_shown_for_any_name(luthier: Luthier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = next(entry for entry in entries() if entry.source != "embedded")
    card = json.loads(luthier("models", entry.source, "--json").stdout)
    assert (card["id"], card["at"]) == (entry.id, None)
    assert "not on this machine" in luthier("models", entry.id).stdout
    folder = tmp_path / "mirror" / entry.source
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    monkeypatch.setenv("LUTHIER_MODELS", str(tmp_path / "mirror"))
    assert json.loads(luthier("models", entry.id, "--json").stdout)["at"] == str(folder)


def test_hyperparameters_as_text_and_json(luthier: Luthier) -> None:
    rows = json.loads(luthier("hyperparameters", "--json").stdout)
    shown = luthier("hyperparameters").stdout
    for row in rows:
        assert f"  {row['name']} = {row['default']}" in shown


@pytest.mark.parametrize(("count", "shown"), [(5_180_000, "5.18M"), (1_557_611_200, "1.56B"), (900, "900")])
def test_size_formats_a_parameter_count(count: int, shown: str) -> None:
    assert size(count) == shown


class TestCache:
    @pytest.fixture(autouse=True)
    def entries(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """A cache with two entries of 1,000 and 500 bytes, and a folder that is not the cache's."""
        folder = tmp_path / "cache"
        for letter, count in (("a", 1000), ("b", 500)):
            (folder / (letter * 64)).mkdir(parents=True)
            (folder / (letter * 64) / "ids.bin").write_bytes(b"x" * count)
        (folder / "mine").mkdir()
        (folder / "mine" / "file").write_text("mine")
        (folder / ("c" * 64)).symlink_to(folder / "mine")
        monkeypatch.setenv("LUTHIER_CACHE", str(folder))
        return folder

    def test_list(self, luthier: Luthier, entries: Path) -> None:
        listed = json.loads(luthier("cache", "list", "--json").stdout)
        assert listed["folder"] == str(entries)
        assert [(item["name"], item["bytes"]) for item in listed["items"]] == [("a" * 64, 1000), ("b" * 64, 500)]
        assert "a" * 64 in luthier("cache", "list").stdout

    def test_clean_deletes_only_old_entries(self, luthier: Luthier, entries: Path) -> None:
        assert "removed 0 items" in luthier("cache", "clean", "--older-than", "1").stdout
        assert "removed 2 items" in luthier("cache", "clean").stdout
        assert luthier("cache", "list").stdout.endswith("empty\n")
        assert (entries / "mine" / "file").read_text() == "mine"

    def test_the_engine_names_its_folders_as_the_command_expects(self) -> None:
        assert cache._HASH.fullmatch(key_of({"any": "facts"}))
