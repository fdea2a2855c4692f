"""llama.cpp from PyPI's llama-cpp-python, for the slow tests.

Its sources, with the converter and vocabularies with known ids, and a virtual environment with the library, built once
with cmake (about 10 minutes on 2 cores), are kept in .venv-llama-cpp.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tarfile
import venv
from pathlib import Path
from typing import Any

import pytest

PIN = "llama-cpp-python==0.3.36"
ROOT = Path(__file__).resolve().parents[1] / ".venv-llama-cpp"
HERE = Path(__file__).parent


def sources() -> Path:
    """The folder of llama.cpp's sources; the test is skipped, with pip's reason, where they cannot be downloaded."""
    folder = ROOT / PIN.replace("==", "-") / "vendor" / "llama.cpp"
    if not folder.is_dir():
        downloads = ROOT / "downloads"
        pip_download(PIN, downloads, "--no-binary", ":all:")
        with tarfile.open(next(downloads.glob("llama_cpp_python-*.tar.gz"))) as archive:
            archive.extractall(ROOT, filter="data")
        next(ROOT.glob("llama_cpp_python-*")).rename(ROOT / PIN.replace("==", "-"))
    return folder


def pip_download(pin: str, folder: Path, *options: str) -> None:
    """Download one distribution; skip the test with pip's last line where that fails."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "-q", "-d", str(folder), *options, pin]
    command += shlex.split(os.environ.get("LUTHIER_PIP_ARGS", ""))
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"{pin} cannot be downloaded: {(done.stderr.strip().splitlines() or ['pip failed'])[-1]}")


def interpreter() -> Path:
    """The Python of the environment with llama-cpp-python; skips the test where it cannot be built."""
    python = ROOT / "venv" / "bin" / "python"
    made = ROOT / "venv" / "made"
    if not made.is_file():
        sources()
        venv.create(ROOT / "venv", clear=True, with_pip=True)
        command = [str(python), "-m", "pip", "install", "-q", str(next((ROOT / "downloads").glob("*.tar.gz")))]
        command += shlex.split(os.environ.get("LUTHIER_PIP_ARGS", ""))
        flags = {"CMAKE_ARGS": "-DLLAVA_BUILD=OFF -DGGML_OPENMP=OFF", "CMAKE_BUILD_PARALLEL_LEVEL": "2"}
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | flags)
        if done.returncode:
            pytest.skip(f"{PIN} cannot be built: {(done.stderr.strip().splitlines() or ['pip failed'])[-1]}")
        made.touch()
    return python


def convert(folder: Path, out: Path, *options: str, any_vocabulary: bool = False) -> Path:
    """Run llama.cpp's converter on a Hugging Face folder; `any_vocabulary`: it need not be a known model's."""
    program = [str(HERE / "llama_cpp_convert.py")] if any_vocabulary else [str(sources() / "convert_hf_to_gguf.py")]
    done = subprocess.run(
        [sys.executable, *program, str(folder), "--outfile", str(out), "--outtype", "f32", *options],
        capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(sources() / "gguf-py"), str(sources())])},
    )  # fmt: skip
    assert out.is_file(), done.stderr[-2000:]
    return out


def ask(request: dict[str, Any]) -> Any:
    """Send one request to llama_cpp_program.py in the environment; its answer."""
    done = subprocess.run(
        [str(interpreter()), str(HERE / "llama_cpp_program.py")],
        input=json.dumps(request),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)
