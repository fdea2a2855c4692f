"""`luthier tune`: the run folder it creates, what it refuses before that, and which runs it resumes."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from luthier.catalog.locate import locate
from luthier.cli.app import app
from luthier.cli.program import Program
from luthier.cli.tune import default_out
from luthier.errors import EulaError, LuthierError, RunFolderError, SettingError, UserError
from luthier.jobfolder import JobFolder


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A DATA folder with training/ and validation/; the current folder is beside it."""
    monkeypatch.chdir(tmp_path)
    for split in ("training", "validation"):
        folder = tmp_path / "rows" / split
        folder.mkdir(parents=True)
        (folder / "a.jsonl").write_text('{"prompt": "p", "completion": "c"}\n')
    return tmp_path / "rows"


def invoke(*arguments: str | Path) -> Any:
    """What the command returns; its error, raised."""
    result: Result = CliRunner().invoke(app, ["tune", *map(str, arguments)], standalone_mode=False)
    if result.exception:
        raise result.exception
    return result.return_value


def test_a_run_folder_is_created_and_training_started(rows: Path, tmp_path: Path) -> None:
    call = invoke("rows", "--out", "run", "--set", "epoch=2", "-s", "lora_r=16", "--score-rows", "all")
    assert call == Program("luthier.training", (str(tmp_path / "run"),))
    folder = JobFolder(tmp_path / "run")
    job = folder.read_spec()
    assert (job.model, job.kind, job.device, job.score_rows, job.eula) == ("luthier/tiny", "auto", "auto", -1, None)
    assert folder.read_hyperparameters() == {"epoch": "2", "lora_r": "16"}
    assert folder.channels() == {name: rows / name for name in ("training", "validation")}


def test_the_ranks_are_kept_with_the_job(rows: Path, tmp_path: Path) -> None:
    assert invoke("rows", "--out", "run", "--ranks", "2").arguments == (str(tmp_path / "run"),)
    assert JobFolder(tmp_path / "run").read_spec().ranks == 2
    with pytest.raises(typer.TyperException, match="greater than or equal to 0"):
        invoke("rows", "--out", "other", "--ranks", "-1")


def test_the_default_folder_is_named_by_time_and_model(rows: Path, tmp_path: Path) -> None:
    call = invoke("rows")
    folder = Path(call.arguments[0])
    assert folder.parent == tmp_path / "runs"
    assert folder.name.endswith("-tiny")
    model = tmp_path / "My Model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    when = time.struct_time((2026, 1, 2, 3, 4, 5, 0, 0, 0))
    assert default_out(locate(str(model)), when) == Path("runs/20260102-030405-My-Model")


def test_explicit_splits_replace_those_of_data(rows: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text("{}\n")
    invoke("rows", "--out", "run", "--validation", "other.jsonl", "--test", rows / "validation")
    assert JobFolder(tmp_path / "run").channels() == {
        "training": rows / "training",
        "validation": other,
        "test": rows / "validation",
    }


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (["rows", "--set", "epcoh=3"], SettingError, "did you mean 'epoch'?"),
        (["rows", "--set", "epoch=many"], SettingError, "epoch=many: expected a whole number"),
        (["rows", "--set", "epoch"], SettingError, "expected NAME=VALUE"),
        (["rows", "--set", "instruction_tuned=True", "--set", "chat_dataset=True"], SettingError, "exclude each other"),
        (["rows", "--max-truncated", "1.5"], SettingError, "between 0 and 1"),
        (["rows", "--score-rows", "-1"], SettingError, "expected a whole number of at least 0, or all"),
        (["rows", "--score-rows", "some"], SettingError, "expected a whole number of at least 0, or all"),
        (["rows", "--model", "llama-2-7b"], EulaError, "--accept-eula"),
        (["rows", "--model", "tny"], UserError, "unknown model 'tny'"),
        (["rows", "--validation", "nowhere"], UserError, "--validation nowhere: no such file or folder"),
        (["rows/none"], UserError, "rows/none: no such file or folder"),
        (["rows", "--resume"], UserError, "--out RUN"),
        (["--resume", "--out", "none"], RunFolderError, "not a Luthier run"),
    ],
)
def test_a_refusal_creates_nothing(
    rows: Path, tmp_path: Path, arguments: list[str], error: type[LuthierError], words: str
) -> None:
    with pytest.raises(error) as caught:
        invoke(*arguments)
    assert words in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows"]


def test_an_accepted_licence_is_recorded(rows: Path, tmp_path: Path) -> None:
    invoke("rows", "--model", "llama-2-7b", "--accept-eula", "--out", "run")
    eula = JobFolder(tmp_path / "run").read_spec().eula
    assert eula is not None
    assert eula["licence"] == "Llama 2 Community License"
    assert eula["accepted"].endswith("Z")


def test_a_folder_that_is_not_empty_is_refused_and_unchanged(rows: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("mine")
    with pytest.raises(RunFolderError, match=r"not empty.*--resume --out"):
        invoke("rows", "--out", "run")
    assert (tmp_path / "run" / "mine.txt").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    assert invoke("rows", "--out", "empty").arguments == (str(tmp_path / "empty"),)


def test_a_folder_in_use_is_refused(rows: Path, tmp_path: Path) -> None:
    with JobFolder(tmp_path / "run").locked(), pytest.raises(RunFolderError, match="another run"):
        invoke("rows", "--out", "run")


def test_a_failed_creation_leaves_an_existing_folder_empty(rows: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with pytest.raises(UserError):
        invoke("rows", "--out", "run", "--test", "nowhere")
    assert list((tmp_path / "run").iterdir()) == []


class TestResume:
    @pytest.fixture(autouse=True)
    def started(self, rows: Path, tmp_path: Path) -> None:
        invoke("rows", "--out", "run", "--set", "epoch=2", "--set", "learning_rate=1e-3", "--kind", "instruction")

    def test_it_needs_nothing_but_the_run(self, tmp_path: Path) -> None:
        assert invoke("--resume", "--out", "run") == Program("luthier.training", (str(tmp_path / "run"), "--resume"))

    def test_repeated_equal_settings_are_accepted(self) -> None:
        again = ["rows", "--resume", "--out", "run", "--set", "epochs=2", "--set", "learning_rate=0.001"]
        assert invoke(*again, "--kind", "instruction", "--model", "luthier/tiny").arguments[1:] == ("--resume",)

    def test_the_number_of_ranks_may_change(self, tmp_path: Path) -> None:
        call = invoke("--resume", "--out", "run", "--ranks", "3")
        assert call.arguments == (str(tmp_path / "run"), "--resume", "--ranks", "3")
        assert JobFolder(tmp_path / "run").read_spec().ranks == 0

    def test_every_difference_is_a_line(self, rows: Path, tmp_path: Path) -> None:
        (tmp_path / "others").mkdir()
        different = ["others", "--set", "epoch=3", "--set", "lora_r=4", "--kind", "chat", "--device", "cuda"]
        with pytest.raises(RunFolderError) as caught:
            invoke("--resume", "--out", "run", *different)
        lines = str(caught.value).splitlines()
        assert len(lines) == 5
        for words in ("--kind was instruction, now chat", "--device was auto, now cuda", "--set epoch was 2, now 3",
                      "--set lora_r was 8, now 4", "training was"):  # fmt: skip
            assert any(words in line for line in lines), words


def test_a_config_file_is_read_and_set_wins(rows: Path, tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("epochs: 7\nlearning_rate: 1e-3\nlora_target_modules: [q_proj, v_proj]\npacking: off\n")
    invoke("rows", "--out", "run", "--config", config, "--set", "epoch=1", "--set", "epoch=2")
    assert JobFolder(tmp_path / "run").read_hyperparameters() == {
        "epoch": "2",
        "learning_rate": "0.001",
        "lora_target_modules": "q_proj,v_proj",
        "packing": "False",
    }


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("epoch: 1\nepoch: 2\n", ":2: 'epoch' is set twice"),
        ("epoch: 1\nepochs: 2\n", "epoch is set twice"),
        ("epcoh: 1\n", "did you mean 'epoch'?"),
        ("- epoch\n", "expected lines of the form `name: value`"),
        ("lora: {r: 8}\n", "without nesting"),
        ("epoch: [1\n", "invalid YAML"),
        ("epoch: \xff\n", "expected UTF-8"),
    ],
)
def test_faults_of_a_config_file_name_it(rows: Path, tmp_path: Path, text: str, words: str) -> None:
    config = tmp_path / "c.yaml"
    config.write_bytes(text.encode("latin-1"))
    with pytest.raises(SettingError) as caught:
        invoke("rows", "--config", config)
    assert str(caught.value).startswith(str(config))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_stored_command_is_the_one_that_was_typed(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["/usr/bin/luthier", "tune", "rows"])
    invoke("rows", "--out", "run")
    stored = json.loads((tmp_path / "run" / "input" / "config" / "job.json").read_text())
    assert stored["command"] == ["luthier", "tune", "rows"]
    assert (tmp_path / "run" / "input" / "data" / "training").is_symlink()
