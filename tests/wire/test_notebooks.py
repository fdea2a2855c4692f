"""The notebooks of examples/: clean, and executed as they are against a live server, side by side."""

from __future__ import annotations

import ast
import concurrent.futures
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from wire.driver import Driver

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = {"jumpstart-instruction-tuning": True, "domain-adaptation": True, "autopilot": False}  # by proxy or not


def _cells(name: str) -> list[dict[str, Any]]:
    cells: list[dict[str, Any]] = json.loads((ROOT / "examples" / f"{name}.ipynb").read_text("utf-8"))["cells"]
    return cells


def test_every_notebook_is_executed() -> None:
    assert {path.stem for path in (ROOT / "examples").glob("*.ipynb")} == set(NOTEBOOKS)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_clean_and_plain_python(name: str) -> None:
    cells = _cells(name)
    assert len({cell["id"] for cell in cells}) == len(cells)
    for cell in cells:
        if cell["cell_type"] == "code":
            assert all(len(line) <= 120 for line in cell["source"])
            assert (cell["outputs"], cell["execution_count"]) == ([], None)
            ast.parse("".join(cell["source"]))


@pytest.mark.slow  # the same calls as the snippets of docs/clients.md, with the SDK's own long waits
def test_the_notebooks_do_what_they_say(driver: Driver, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    driver.folder = tmp_path / "examples"
    driver.make_default_bucket()

    def execute(name: str) -> list[str]:
        path = driver.folder / f"{name}.ipynb"
        values: list[str] = driver.script("sagemaker2", "run_notebook.py", path, proxy=NOTEBOOKS[name])["values"]
        return values

    with concurrent.futures.ThreadPoolExecutor(len(NOTEBOOKS)) as pool:
        said = dict(zip(NOTEBOOKS, pool.map(execute, NOTEBOOKS), strict=True))
    for name, values in said.items():
        assert sum("generated_text" in value for value in values) == (2 if name.startswith("jumpstart") else 1)
    assert any("report.html" in value for value in said["domain-adaptation"])
    asked, as_row = [value for value in said["jumpstart-instruction-tuning"] if "generated_text" in value]
    assert asked == as_row  # the prompt written as on AWS is the one of training
    assert list((tmp_path / "examples").glob("*.csv")) == list((tmp_path / "examples").glob("*.txt")) == []
