"""The command tree: starts fast without torch; every error is one line and an exit code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from child import Luthier
from typer.testing import CliRunner

from luthier import __version__
from luthier.cli.app import COMMANDS, app
from luthier.cli.program import Program
from reference_pages.cli_page import commands


def test_help_lists_every_command(luthier: Luthier) -> None:
    shown = luthier("--help")
    assert shown.returncode == 0
    for name, _, _ in COMMANDS:
        assert f" {name} " in shown.stdout
    assert "cache" in shown.stdout


@pytest.mark.parametrize("path", [path.split()[1:] for path, _ in commands()], ids=" ".join)
def test_every_command_has_help(path: list[str]) -> None:
    shown = CliRunner().invoke(app, [*path, "--help"])
    assert shown.exit_code == 0
    assert "Usage" in shown.output


def test_version(luthier: Luthier) -> None:
    assert luthier("--version").stdout == f"luthier {__version__}\n"


def test_help_imports_no_engine(tmp_path: Path) -> None:
    code = (
        "import sys\nsys.argv = ['luthier', 'tune', '--help']\nfrom luthier.cli import main\n"
        "try:\n    main()\nfinally:\n"
        "    heavy = {'torch', 'transformers', 'peft', 'tokenizers', 'huggingface_hub', 'numpy', 'boto3', 'pyarrow'}\n"
        "    print(sorted(heavy & sys.modules.keys()), file=sys.stderr)\n"
    )
    shown = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert shown.returncode == 0
    assert shown.stderr == "[]\n"


def test_help_loads_few_modules() -> None:
    """Start-up time without a clock: some 400 modules are imported; torch alone imports 1,500."""
    shown = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "luthier", "--help"], capture_output=True, text=True, check=True
    )
    assert shown.stderr.count("import time:") < 600


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["tuen"], 2, "tune"),
        (["tune", "--bogus"], 2, "--bogus"),
        (["tune"], 2, "missing DATA"),
        (["tune", "nowhere"], 2, "nowhere: no such file or folder"),
        (["tune", "x", "--kind", "poem"], 2, "poem"),
        (["tune", "x", "--device", "gpu"], 2, "expected auto, cpu, cuda, cuda:N or mps"),
        (["tune", "ftp://host/rows"], 2, "ftp:// is not supported"),
        (["inspect", "s3://bucket/rows"], 2, "only `luthier tune` reads s3://"),
        (["models", "gpt2-xxl"], 2, "did you mean 'gpt2-xl'?"),
        (["generate", "luthier/tiny"], 2, "either TEXT or --file"),
        (["export", "nowhere", "--merged", "--adapter"], 2, "choose the form"),
        (["export", "nowhere", "--merged"], 2, "not a Luthier run"),
        (["evaluate", "no-such-model", "nowhere"], 2, "nowhere"),
    ],
)
def test_errors_are_one_line_and_an_exit_code(luthier: Luthier, arguments: list[str], code: int, words: str) -> None:
    ended = luthier(*arguments)
    assert (ended.returncode, ended.stdout) == (code, "")
    assert ended.stderr.startswith("luthier: error: ")
    assert ended.stderr.count("\n") == 1
    assert words in ended.stderr


def test_an_unexpected_error_shows_its_traceback_only_in_debug_mode(tmp_path: Path) -> None:
    code = "from luthier.cli import app\napp.app = lambda *_, **__: 1 / 0\napp.main()"
    for debug, expected in (("", False), ("1", True)):
        environment = {**os.environ, "LUTHIER_DEBUG": debug}
        ended = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env=environment, check=False
        )
        assert ended.returncode == 1
        assert "ZeroDivisionError: division by zero" in ended.stderr
        assert ("Traceback" in ended.stderr) is expected


def test_a_closed_pipe_prints_no_error(tmp_path: Path) -> None:
    command = f"{sys.executable} -m luthier hyperparameters --json | head -n 1"
    ended = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.stdout == "[\n"
    assert ended.stderr == ""


def exec_in_child(module: str, source: str, folder: Path, request: str) -> subprocess.CompletedProcess[str]:
    (folder / f"{module}.py").write_text(source)
    code = f"from luthier.cli import program\nprogram.exec_program(program.Program({module!r}, ('a b',), {request}))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *filter(None, sys.path)])}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)


def test_exec_passes_arguments_request_and_exit_code(tmp_path: Path) -> None:
    source = "import json, os, sys\nprint(sys.argv[1:], len(json.load(sys.stdin)['text']))\nsys.exit(7)"
    ended = exec_in_child("program", source, tmp_path, "{'text': 'ä' * 200_000}")
    assert ended.stderr == ""
    assert (ended.stdout, ended.returncode) == ("['a b'] 200000\n", 7)


def test_the_program_replaces_the_process(tmp_path: Path) -> None:
    """kill -9 on `luthier tune` must end the training, without an orphan that holds the run's lock."""
    (tmp_path / "program.py").write_text("import os, sys, time\nprint(os.getpid(), flush=True)\ntime.sleep(60)")
    code = "from luthier.cli.program import Program, exec_program\nexec_program(Program('program'))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])}
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)
    assert child.stdout is not None
    with child, child.stdout:
        assert int(child.stdout.readline()) == child.pid
        child.kill()


def test_the_engine_imports_no_module_from_the_current_folder(tmp_path: Path, luthier: Luthier) -> None:
    (tmp_path / "psutil.py").write_text("raise SystemExit('imported from the current folder')")
    assert Program("luthier.data").argv[1:] == ["-P", "-m", "luthier.data"]
    ended = subprocess.run([*Program("luthier.training.doctor").argv], cwd=tmp_path, input='{"json": true}',
                           capture_output=True, text=True, check=False)  # fmt: skip
    assert ended.returncode == 0, ended.stderr
