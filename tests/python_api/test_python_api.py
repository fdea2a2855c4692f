"""`import luthier`: its names and defaults are the command line's, its errors Luthier's, an interrupt a checkpoint."""

from __future__ import annotations

import inspect
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import psutil
import pytest
from typer.models import OptionInfo

import luthier
from luthier.errors import DataError, Interrupted, LuthierError, RunFolderError, SettingError, UserError
from luthier.python_api import progress
from luthier.python_api.comparison import Comparison
from luthier.python_api.program import command, run_program
from reference_pages.cli_page import commands

ROWS = [{"question": f"{number} + 1?", "answer": str(number + 1)} for number in range(40)]
# Options that a function has no use for: it returns data, and takes hyperparameters as keyword arguments.
NOT_ARGUMENTS = {"json", "set", "resume", "file"}


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    folder = tmp_path / "rows"
    folder.mkdir()
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS), "utf-8")
    (folder / "template.json").write_text(json.dumps({"prompt": "{question}\n", "completion": "{answer}"}), "utf-8")
    return folder


def options(name: str) -> dict[str, Any]:
    """The options of `luthier NAME` with their defaults, by their names with underscores."""
    function = dict(commands())[f"luthier {name}"]
    hints = get_type_hints(function, include_extras=True)
    found = {}
    for parameter in inspect.signature(function).parameters.values():
        notes = get_args(hints[parameter.name])[1:] if get_origin(hints[parameter.name]) is Annotated else ()
        for note in notes:
            if isinstance(note, OptionInfo):
                forms = (note.default, *(note.param_decls or ()))
                long_form = next(str(form) for form in forms if str(form).startswith("--"))
                found[long_form[2:].split("/")[0].replace("-", "_")] = parameter.default
    return found


@pytest.mark.parametrize("name", ["tune", "inspect", "generate", "evaluate", "models"])
def test_a_function_has_the_options_and_defaults_of_its_command(name: str) -> None:
    parameters = inspect.signature(getattr(luthier, name)).parameters.values()
    own = {"verbose", "progress", "match"}  # without a counterpart, or positional
    named = {each.name: each.default for each in parameters if each.kind is each.KEYWORD_ONLY and each.name not in own}
    wanted = {option: default for option, default in options(name).items() if option not in NOT_ARGUMENTS | own}
    assert named == wanted


def test_importing_luthier_imports_nothing_else() -> None:
    code = (
        "import sys, luthier; print(sorted(name for name in sys.modules if name.startswith('luthier')));"
        "luthier.tune; print('torch' in sys.modules, sorted(set(luthier.__all__) - set(dir(luthier))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "['luthier']\nFalse []\n"
    with pytest.raises(AttributeError, match="no attribute 'tunee'"):
        luthier.tunee  # noqa: B018


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda rows: luthier.tune(rows, epoc=3), SettingError, "did you mean 'epoch'"),
        (lambda rows: luthier.tune(rows / "none"), UserError, "no such file or folder"),
        (lambda rows: luthier.generate("luthier/tiny", "x", beams=0), UserError, "--beams"),
        (lambda rows: luthier.generate("luthier/tiny", [1]), UserError, "expected a text, a dict"),  # type: ignore[list-item]
        (lambda rows: luthier.Run(rows), RunFolderError, "not a Luthier run"),
        (lambda rows: luthier.connect(port=1), UserError, "no service answers"),
    ],
)
def test_a_mistake_is_an_exception_of_the_error_tree(
    rows: Path, call: Callable[[Path], object], error: type[LuthierError], message: str
) -> None:
    with pytest.raises(error, match=message):
        call(rows)
    assert sorted(path.name for path in rows.parent.iterdir()) == ["rows"]


def test_a_data_error_of_the_engine_keeps_its_problems(rows: Path) -> None:
    (rows / "more.jsonl").write_text('{"question": "1?"}\n{"question": "2?"}\n', "utf-8")
    with pytest.raises(DataError) as raised:
        luthier.inspect(rows)
    assert [(problem.file, problem.line) for problem in raised.value.problems] == [("more.jsonl", 1)]


def test_an_engine_that_is_killed_says_so(rows: Path) -> None:
    program = command("inspect", rows, json=True)
    killed: list[int] = []

    def kill(line: str) -> None:
        for child in psutil.Process().children():
            if not killed and "luthier.data" in child.cmdline():
                child.send_signal(signal.SIGKILL)
                killed.append(child.pid)

    with pytest.raises(LuthierError, match="the engine was killed by SIGKILL"):
        run_program(program, on_poll=kill)


TUNE = """
import luthier, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests are a shell's background job
from luthier.errors import Interrupted
try:
    luthier.tune(sys.argv[1], out=sys.argv[2], max_steps=100000, score_rows=0, validation_split_ratio=0)
except Interrupted as error:
    print(error)
"""


def start_tuning(rows: Path, out: Path) -> subprocess.Popen[str]:
    """A Python process inside `luthier.tune`, past its first training step."""
    command = [sys.executable, "-c", TUNE, str(rows), str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while not (out / "metrics.jsonl").exists() or not (out / "metrics.jsonl").read_text():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return process


def test_an_interrupt_writes_a_checkpoint_that_resume_goes_on_from(rows: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = start_tuning(rows, out)
    process.send_signal(signal.SIGINT)
    printed, errors = process.communicate(timeout=300)
    assert errors == ""
    assert re.search(r"stopped after step \d+ .*; resume with: luthier.Run\('.*run'\).resume\(\)", printed)
    run = luthier.Run(out)
    assert not run.finished
    assert list((out / "checkpoints").glob("step-*"))
    with pytest.raises(RunFolderError, match="not finished"):
        run.metrics  # noqa: B018
    assert "not finished" in run._repr_html_()


def test_the_engine_does_not_outlive_its_python_process(rows: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = start_tuning(rows, out)
    engines = psutil.Process(process.pid).children()
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert psutil.wait_procs(engines, timeout=120)[1] == []
    assert list((out / "checkpoints").glob("step-*"))  # it had time to write one


def test_a_comparison_is_a_table() -> None:
    difference = {"loss": {"value": -1.0, "low": -1.5, "high": -0.5}}
    base, tuned = {"loss": 2.0, "f1": None}, {"loss": 1.0, "f1": None}
    metrics = {"rows": 1200, "split": "test", "base": base, "tuned": tuned, "difference": difference}
    table = Comparison.from_metrics(metrics)
    assert table.rows["loss"] == {"base": 2.0, "tuned": 1.0, "change": -1.0, "low": -1.5, "high": -0.5}
    assert str(table).splitlines()[1].split() == ["loss", "2.0000", "1.0000", "-1.0000", "-1.5000", "-0.5000"]
    assert "1,200 held-out rows (test)" in table._repr_html_()
    assert Comparison.from_metrics({"rows": 0, "split": None}).caption == "no held-out rows were scored"


def test_progress_follows_the_metrics_file(rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command("tune", rows, out=tmp_path / "run", flags=("--set", "epoch=2"))
    folder = luthier.Run(tmp_path / "run")._folder
    bar = progress.MetricsProgressBar(folder)
    bar.update("reading rows")
    folder.metrics_lines.write_text('{"step": 5, "epoch": 1.0, "loss": 0.5}\n{"step": 6, "ep', "utf-8")
    bar.update("")
    bar.close()
    assert " 50%" in capsys.readouterr().err.splitlines()[-1].rpartition("\r")[2]
    assert not progress.in_notebook()


def test_interrupted_is_in_the_public_tree() -> None:
    assert luthier.errors.Interrupted is Interrupted
