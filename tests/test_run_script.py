"""run.py: how it chooses Python and what it installs, with pip replaced; the real install is what runs these tests."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def run_py(tmp_path: Path) -> ModuleType:
    """run.py as a module, with an own root and .venv."""
    spec = importlib.util.spec_from_file_location("run_py", ROOT / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text((ROOT / name).read_text("utf-8"))
    paths: dict[str, Any] = {"ROOT": tmp_path, "VENV": tmp_path / ".venv"}
    paths |= {"PYTHON": tmp_path / ".venv" / "bin" / "python", "STAMP": tmp_path / ".venv" / "stamp.json"}
    for name, value in paths.items():
        setattr(module, name, value)
    (tmp_path / ".venv").mkdir()
    return module


@pytest.fixture
def commands(run_py: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that run.py would run."""
    seen: list[list[str]] = []
    monkeypatch.setattr(run_py, "_run", lambda *command: seen.append(list(command)))
    monkeypatch.setattr(run_py, "_nvidia", lambda: True)
    return seen


def test_postgresql_is_installed_by_root_and_requested_otherwise(run_py: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[tuple[str, ...]] = []
    monkeypatch.setattr(run_py, "_run", lambda *command: commands.append(command))
    run_py.install_programs()
    assert commands == []  # PostgreSQL is installed
    monkeypatch.setattr(run_py, "Path", lambda *parts: Path("/nonexistent"))
    monkeypatch.setattr(run_py.shutil, "which", lambda name: name if name == "apt-get" else None)
    monkeypatch.setattr(run_py.os, "geteuid", lambda: 0)
    run_py.install_programs()
    assert commands[-1][-1] == "postgresql"
    monkeypatch.setattr(run_py.os, "geteuid", lambda: 1000)
    with pytest.raises(run_py.Stop, match="sudo apt-get install postgresql"):
        run_py.install_programs()


def test_it_installs_once_and_again_when_the_pins_change(
    run_py: ModuleType, commands: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LUTHIER_PIP_ARGS", "--extra-index-url 'file:///a b'")
    run_py.install(dev=False)
    run_py.install(dev=False)
    assert len(commands) == 1
    assert commands[0][-2:] == ["--extra-index-url", "file:///a b"]
    assert str(run_py.ROOT) in commands[0]
    run_py.install(dev=True)
    run_py.install(dev=False)
    assert len(commands) == 2
    assert f"{run_py.ROOT}[dev]" in commands[1]
    (run_py.ROOT / "constraints.txt").write_text("torch==1\n")
    run_py.install(dev=False)
    assert len(commands) == 3


def test_a_python_without_ensurepip_gets_pip_from_outside(
    run_py: ModuleType, commands: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_py, "_has", lambda module: module == "pip")
    run_py.make_venv()
    assert commands[0][1:3] == ["-m", "venv"]
    assert "--without-pip" in commands[0]
    assert commands[1][1:] == ["-m", "pip", "--python", str(run_py.PYTHON), "install", "-q", "pip"]


@pytest.mark.parametrize("root", [True, False])
def test_a_python_with_neither_pip_nor_ensurepip(
    run_py: ModuleType, commands: list[list[str]], monkeypatch: pytest.MonkeyPatch, root: bool
) -> None:
    monkeypatch.setattr(run_py, "_has", lambda module: False)
    monkeypatch.setattr(run_py.os, "geteuid", lambda: 0 if root else 1000)
    monkeypatch.setattr(run_py.shutil, "which", lambda name: f"/usr/bin/{name}")
    if root:
        run_py.make_venv()
        assert [command[0] for command in commands] == ["apt-get", "apt-get", sys.executable]
    else:
        with pytest.raises(run_py.Stop, match=r"sudo apt-get install python3\.\d+-venv"):
            run_py.make_venv()


def test_a_venv_of_another_python_is_recreated(run_py: ModuleType, commands: list[list[str]]) -> None:
    run_py.PYTHON.parent.mkdir()
    run_py.PYTHON.write_text("#!/bin/sh\necho 3.9\n")
    run_py.PYTHON.chmod(0o755)
    run_py.make_venv()
    assert not run_py.PYTHON.exists()
    assert commands[0][1:3] == ["-m", "venv"]


def test_a_venv_of_this_python_is_kept(run_py: ModuleType, commands: list[list[str]]) -> None:
    run_py.PYTHON.parent.mkdir()
    run_py.PYTHON.symlink_to(sys.executable)
    run_py.make_venv()
    assert commands == []


def test_an_unsupported_python_looks_for_one_that_runs(run_py: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    (run_py.ROOT / "python3.13").write_text("#!/bin/sh\nexit 127\n")  # a version manager's empty shim
    (run_py.ROOT / "python3.12").write_text("#!/bin/sh\nexit 0\n")
    for name in ("python3.13", "python3.12"):
        (run_py.ROOT / name).chmod(0o755)
    started: list[list[str]] = []
    monkeypatch.setenv("PATH", f"{run_py.ROOT}:/bin")
    monkeypatch.setattr(run_py.os, "execv", lambda path, command: started.append([path, *command[2:]]))
    monkeypatch.setattr(run_py.sys, "argv", ["run.py", "demo"])
    monkeypatch.setattr(run_py, "NEWEST", (3, 13))
    monkeypatch.setattr(run_py.sys, "version_info", (3, 14, 0, "final", 0))
    with contextlib.suppress(run_py.Stop):  # execv, replaced above, returns
        run_py.use_a_supported_python()
    assert started[0] == [str(run_py.ROOT / "python3.12"), "demo"]


def test_no_supported_python_is_one_line(run_py: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(run_py.sys, "version_info", (3, 10, 2, "final", 0))
    with pytest.raises(run_py.Stop, match=r"^this is Python 3\.10; Luthier requires Python 3\.11 to 3\.13"):
        run_py.use_a_supported_python()


class Plans:
    """Replaces pip's dry run: plans a CUDA build, or a CPU build if the command contains `cpu_index`."""

    def __init__(self, cpu_index: str = "") -> None:
        self.cpu_index = cpu_index
        self.commands: list[list[str]] = []

    def __call__(self, command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        self.commands.append(command)
        names = ["torch"] if self.cpu_index and self.cpu_index in command else ["torch", "nvidia-cublas", "sympy"]
        page = {"project_url": ["Documentation, https://docs.example.org", "Homepage, https://torch.example.org"]}
        items = [{"metadata": {"name": name, **page}, "download_info": {"url": f"file:///{name}"}} for name in names]
        Path(command[command.index("--report") + 1]).write_text(json.dumps({"install": items}))
        return subprocess.CompletedProcess(command, 0)


def test_without_an_nvidia_device_the_cpu_build_is_taken(
    run_py: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    index = "https://download.torch.example.org/whl/cpu"
    monkeypatch.setattr(run_py.subprocess, "run", Plans(index))
    assert run_py._without_cuda(["--quiet"]) == ["--quiet", "--extra-index-url", index]
    assert capsys.readouterr().out.count("\n") == 1


def test_a_cuda_build_that_cannot_be_avoided_is_announced(
    run_py: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run_py.subprocess, "run", Plans())
    monkeypatch.setattr(run_py, "_size", lambda url: 500_000_000)
    assert run_py._without_cuda([]) == []
    output = capsys.readouterr().out
    assert "3 packages, 1.5 GB" in output
    assert "LUTHIER_PIP_ARGS" in output
    assert output.count("\n") == 1


def test_a_cpu_build_that_pip_finds_by_itself_needs_nothing(
    run_py: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plans = Plans("--quiet")
    monkeypatch.setattr(run_py.subprocess, "run", plans)
    assert run_py._without_cuda(["--quiet"]) == ["--quiet"]
    assert len(plans.commands) == 1
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("arguments", "code"), [(["help"], 0), ([], 0), (["tset"], 2)])
def test_its_help(arguments: list[str], code: int) -> None:
    command = [sys.executable, str(ROOT / "run.py"), *arguments]
    shown = subprocess.run(command, capture_output=True, text=True, check=False)
    assert shown.returncode == code
    assert "python3 run.py demo" in shown.stdout


def test_bench_lists_the_scripts(run_py: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    (run_py.ROOT / "bench").mkdir()
    (run_py.ROOT / "bench" / "one.py").write_text('"""How fast one is.\n\nMore."""\n')
    run_py.bench(["list"])
    assert capsys.readouterr().out.split(maxsplit=1) == ["one", "How fast one is.\n"]
    with pytest.raises(run_py.Stop, match="benchmark 'two' not found; expected one of: one"):
        run_py.bench(["two"])


def test_constraints_pin_every_requirement_exactly_and_name_no_host() -> None:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()[1:]
    pinned = {line.partition("==")[0].lower().replace("_", "-") for line in lines}
    assert all(line.count("==") == 1 and "+" not in line and "/" not in line and "@" not in line for line in lines)
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    for name in ("torch", "transformers", "peft", "tokenizers", "numpy", "pyarrow", "typer", "rich", "pytest", "moto"):
        assert f'"{name}' in project
        assert name in pinned


def test_the_clients_venvs_are_created_during_the_install(run_py: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    class Clients:
        def __init__(self, command: list[str]) -> None:
            order.append(Path(command[1]).name)

        def __enter__(self) -> None: ...

        def __exit__(self, *fault: object) -> None:
            order.append("waited for")

    monkeypatch.setattr(run_py.subprocess, "Popen", Clients)
    monkeypatch.setattr(run_py, "install", lambda dev: order.append("install"))
    monkeypatch.setattr(run_py, "install_programs", lambda: order.append("programs"))
    monkeypatch.setattr(run_py, "become", lambda *command, **variables: order.append("pytest"))
    run_py.test([])
    assert order == ["clients.py", "install", "programs", "waited for", "pytest"]
