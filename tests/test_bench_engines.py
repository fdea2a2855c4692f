"""`bench engines`: engines are pinned, what one ignores is measured, refusals are reported, the page gets the table."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench import engines
from bench.engine_programs.program import Answer, before_stop
from bench.field import engine_report, engine_variants, machine, peers
from bench.field.engine_models import BASES, Artefact, make, write_base


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    """A Mistral with a sliding window, all weights tuned."""
    folder = tmp_path_factory.mktemp("engines")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LUTHIER_CACHE", str(folder / "cache"))
        (made,) = make(BASES["mistral"], folder / "bases", folder / "work")
    return made


def test_each_engine_is_pinned_and_has_a_program_and_a_title() -> None:
    venvs = peers.read(engines.PINS.read_text("utf-8"))
    assert set(engines.engine_names()) == set(engine_report.TITLES)
    assert all(len(venv.peers) == 1 and venv.requirements for venv in venvs)
    programs = {path.stem for path in (engines.PINS.parent / "engine_programs").glob("*_program.py")}
    assert programs == {f"{name.replace('-', '_')}_program" for name in engines.engine_names()}


def test_packages_removed_again_and_variables_of_the_installation_are_read() -> None:
    (venv,) = peers.read("[.venv-x: x]\nCMAKE_ARGS=-DA=OFF -DB=OFF\na==1\n-b\n")
    assert (venv.requirements, venv.removed) == (("a==1",), ("b",))
    assert venv.variables == (("CMAKE_ARGS", "-DA=OFF -DB=OFF"),)
    with pytest.raises(ValueError, match="'-b': expected NAME==VERSION"):
        peers.read("-b\n")


def test_bases_have_the_config_that_publishers_write(tmp_path: Path) -> None:
    config = json.loads((Path(write_base(BASES["llama3"], tmp_path)) / "config.json").read_text("utf-8"))
    assert (config["rope_theta"], config["rope_scaling"]["rope_type"]) == (500000.0, "llama3")
    assert "rope_parameters" not in config


def test_an_engine_is_compared_with_luthier_token_for_token(artefact: Artefact, tmp_path: Path) -> None:
    found = engines.open_in("transformers", Path(sys.executable), artefact, tmp_path, 1)
    assert (found["tokens"], found["ids"], found["rows"]) == (8, 8, 8)
    assert found["ignored"] == []
    assert engine_report.verdict(found) == "8/8"
    assert not (tmp_path / "transformers-mistral-full" / "files").exists()


def test_what_an_engine_ignores_is_found_by_a_model_without_it(artefact: Artefact, tmp_path: Path) -> None:
    (tmp_path / "copies").mkdir()
    ((name, without_window),) = engine_variants.of_model(artefact.model, tmp_path / "copies")
    assert name == "sliding_window"
    found = engines.open_in(
        "transformers", Path(sys.executable), replace(artefact, model=without_window), tmp_path / "work", 1
    )
    assert found["tokens"] < 8
    assert found["ignored"] == ["sliding_window"]
    assert "ignores sliding_window" in engine_report.verdict(found)


def test_an_engine_that_cannot_run_is_reported_and_the_next_one_runs(artefact: Artefact, tmp_path: Path) -> None:
    found = engines.open_in("mlx", Path(sys.executable), artefact, tmp_path, 1)  # not in this venv
    assert "ended with code 1: ModuleNotFoundError: No module named 'mlx'" in engine_report.verdict(found)


def test_a_refused_stage_keeps_the_engine_s_words_and_the_later_stages_run() -> None:
    answer = Answer(("torch",))
    assert answer.attempt("convert", lambda: int("x")) is None
    assert answer.attempt("tokens", lambda: [[1]]) == [[1]]
    assert answer.content["errors"] == {"convert": "ValueError: invalid literal for int() with base 10: 'x'"}
    assert before_stop([5, 6, 7], [6, 9]) == [5]


@pytest.mark.parametrize(
    ("stored", "names"),
    [
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}, []),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, ["rope_theta"]),
        (
            {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0}},
            ["rope_scaling", "rope_theta", "rope_theta and rope_scaling"],
        ),
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25}},
            ["the rotary fraction"],
        ),
        ({"sliding_window": 8, "layer_types": ["full_attention"]}, []),
    ],
)
def test_variants_follow_from_the_config(stored: dict[str, Any], names: list[str]) -> None:
    assert [name for name, _ in engine_variants._changes(stored | {"max_position_embeddings": 64})] == names


def result(engine: str, **facts: Any) -> dict[str, Any]:
    return {"engine": engine, "base": "mistral", "form": "full", "rows": 8, "tokens": 8, "ids": 8, "chat_ids": None,
            "past_end": 0, "ignored": [], "errors": {}, "notes": [], "versions": {engine: "1.0"}} | facts  # fmt: skip


def test_the_page_gets_equal_rows_refusals_and_what_is_ignored() -> None:
    results = [
        result("transformers", past_end=2), result("mlx", tokens=0, ids=7, ignored=["sliding_window"]),
        result("ctranslate2", tokens=None, ids=None, errors={"convert": "ValueError: no"}),
    ]  # fmt: skip
    found = {"machine": machine.describe(), "threads": 1, "results": results, "missing": {"smollm2": "offline"}}
    table = engine_report.render(found)
    assert (
        "| mistral | full | 8/8, goes on after the end token in 2 | **0/8**, ignores sliding_window | refused [1] |"
        in table
    )
    assert "| mlx-lm | mlx 1.0 | 7/8 | none |" in table
    assert "1. conversion: `ValueError: no`" in table
    assert "- smollm2 is not included: offline" in table
    page = f"# Deploy\n{engine_report.BEGIN}\nold\n{engine_report.END}\nend\n"
    assert engine_report.insert(page, table) == f"# Deploy\n{engine_report.BEGIN}\n{table}{engine_report.END}\nend\n"
    with pytest.raises(ValueError, match="the page has no"):
        engine_report.insert("# Deploy\n", table)


def test_unknown_engines_and_models_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        engines.main(["--engines", "vllm"])
    assert "--engines vllm: expected transformers, ctranslate2" in capsys.readouterr().err
