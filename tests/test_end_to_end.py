"""The command line as a user runs it: every command once, as its own process, on the embedded model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from child import Luthier

REVIEWS = Path(__file__).parents[1] / "examples" / "reviews"
FIELDS = {"product_title": "lamp", "review_headline": "Great", "review_body": "I love it and it works well."}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small part of the example, in the example's layout."""
    folder = tmp_path_factory.mktemp("reviews")
    for split, name, count in (("training", "train", 48), ("validation", "validation", 6), ("test", "test", 12)):
        (folder / split).mkdir()
        lines = (REVIEWS / split / f"{name}.jsonl").read_text("utf-8").splitlines(keepends=True)[:count]
        (folder / split / f"{name}.jsonl").write_text("".join(lines), "utf-8")
    shutil.copy(REVIEWS / "training" / "template.json", folder / "training")
    return folder


def test_the_whole_road(luthier: Luthier, rows: Path, tmp_path: Path) -> None:
    seen = luthier("inspect", rows, "--json")
    assert seen.returncode == 0, seen.stderr
    report = json.loads(seen.stdout)
    assert (report["kind"], report["rows"], report["kept"], report["dropped"]) == ("instruction", 66, 66, 0)
    assert set(report["examples"][0]) >= {"source", "prompt", "completion"}

    tuned = luthier("tune", rows, "--out", "run", "--set", "epoch=2", "--set", "learning_rate=0.003")
    assert tuned.returncode == 0, tuned.stderr
    assert "exact match" in tuned.stdout
    assert "run/report.html" in tuned.stdout

    again = luthier("tune", rows, "--out", "run")
    assert again.returncode == 2
    assert "not empty" in again.stderr

    generated = luthier("generate", "run", json.dumps(FIELDS))
    assert generated.returncode == 0, generated.stderr
    assert generated.stdout.strip()
    answered = luthier("generate", "run", "--file", rows / "test" / "test.jsonl")
    assert len(answered.stdout.splitlines()) == 12
    assert set(json.loads(answered.stdout.splitlines()[0])) >= {"row", "prompt", "generated_text"}

    scored = luthier("evaluate", "run", rows, "--json")
    assert scored.returncode == 0, scored.stderr
    compared = json.loads(luthier("compare", "run", "--json").stdout)
    assert json.loads(scored.stdout)["loss"] == pytest.approx(compared["tuned"]["loss"], rel=1e-5)
    assert "better" in luthier("compare", "run").stdout

    exported = luthier("export", "run", "--merged", "--out", "merged")
    assert exported.returncode == 0, exported.stderr
    assert (tmp_path / "merged" / "model.safetensors").is_file()
    from_export = luthier("evaluate", "merged", rows, "--json")
    assert json.loads(from_export.stdout)["loss"] == pytest.approx(compared["tuned"]["loss"], rel=1e-4)


@pytest.mark.slow
def test_the_side_roads(luthier: Luthier, rows: Path, tmp_path: Path) -> None:
    """Few-shot evaluation of a base model, and the adapter alone; in CI their parts are tested in one process."""
    shots = luthier("evaluate", "luthier/tiny", rows, "--shots", "2", "--json")
    assert shots.returncode == 0, shots.stderr
    assert json.loads(shots.stdout)["rows"] == 12
    assert luthier("tune", rows, "--out", "run", "--set", "max_steps=2").returncode == 0
    exported = luthier("export", "run", "--adapter", "--out", "adapter")
    assert exported.returncode == 0, exported.stderr
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


def test_bad_rows_are_one_line_each_and_exit_2(luthier: Luthier, tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    whole = '{"instruction": "x", "context": "y", "response": "z"}'
    (tmp_path / "bad" / "a.jsonl").write_text(f"{whole}\n{whole[:-9]}\n")
    for command in (("inspect", "bad"), ("tune", "bad", "--out", "run")):
        refused = luthier(*command)
        assert refused.returncode == 2
        assert "a.jsonl:2" in refused.stderr
        assert "Traceback" not in refused.stderr + refused.stdout
    assert "a.jsonl:2" in (tmp_path / "run" / "output" / "failure").read_text()


def test_kinds_that_contradict_are_refused_at_once(luthier: Luthier, rows: Path, tmp_path: Path) -> None:
    both = ("--set", "instruction_tuned=True", "--set", "chat_dataset=True")
    refused = luthier("tune", rows, "--out", "run", *both)
    assert refused.returncode == 2
    assert "exclude each other" in refused.stderr
    assert not (tmp_path / "run").exists()


def test_a_model_that_is_not_to_be_had_says_where_it_was_looked_for(luthier: Luthier, rows: Path) -> None:
    refused = luthier("tune", rows, "--out", "run", "--model", "smollm2-135m")
    assert refused.returncode == 2
    assert "LUTHIER_MODELS" in refused.stderr
    assert refused.stderr.count("\n") == 1
