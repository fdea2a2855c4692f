"""Whole runs on a quantized base: resumed, scored again, foreseen, and refused where the library is missing."""

from __future__ import annotations

import io
import json
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from tiny_models import write_model, write_rows
from training.job_folders import lay_out, lines, run

from luthier.errors import SettingError
from luthier.evaluation.evaluate import evaluate
from luthier.jobfolder import JobFolder
from luthier.training import doctor
from luthier.training.capacity import estimate_resources
from luthier.weights.load import load_model
from luthier.weights.lora import Adapter, attach_adapter
from luthier.weights.quantize import Quantization

SETTINGS = {"max_steps": 6, "save_steps": 2, "save_total_limit": 9, "score_rows": 0, "load_best_model_at_end": False}
METHODS: dict[str, dict[str, Any]] = {
    "int8": {"int8_quantization": True}, "nf4": {"bits": 4},
    "nf4, bf16, recomputed": {"bits": 4, "bf16": True, "gradient_checkpointing": True},
    "int8, DoRA": {"bits": 8, "use_dora": True},
}  # fmt: skip


class Runs:
    """A finished run of each method, on one model and one set of rows."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.model = write_model(root / "model", "llama", dropout=0.1)
        self.rows = write_rows(root / "rows" / "train.jsonl", 25).parent

    def get(self, method: str) -> JobFolder:
        folder = JobFolder(self.root / method)
        if not folder.root.exists():
            run(lay_out(folder.root, self.model, self.rows, **SETTINGS, **METHODS[method]))
        return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("quantized"))


@pytest.mark.parametrize("method", METHODS)
def test_resumed_it_is_the_uninterrupted_run(runs: Runs, method: str, tmp_path: Path) -> None:
    whole = runs.get(method)
    folder = JobFolder(shutil.copytree(whole.root, tmp_path / "run"))
    for step in (4, 6):
        shutil.rmtree(folder.checkpoints / f"step-{step:06d}")
    shutil.rmtree(folder.model)
    assert "resuming after step 2" in run(folder, resume=True)
    assert lines(folder) == lines(whole)
    stored = [load_file(one.model / "adapter_model.safetensors") for one in (whole, folder)]
    assert all(torch.equal(value, stored[1][name]) for name, value in stored[0].items())


@pytest.mark.parametrize("method", METHODS)
def test_evaluate_scores_the_model_that_was_trained(runs: Runs, method: str, tmp_path: Path) -> None:
    folder = runs.get(method)
    request = {"target": str(folder.root), "channels": {"training": str(runs.rows)}, "device": "cpu", "score_rows": 0}
    out = {"json": False, "out": str(tmp_path)}
    (tmp_path / "rows").mkdir()
    held_out = set(json.loads(folder.split.read_text("utf-8"))["validation"])
    texts = (runs.rows / "train.jsonl").read_text("utf-8").splitlines()
    chosen = [text for number, text in enumerate(texts, 1) if f"training/train.jsonl:{number}" in held_out]
    assert len(chosen) == 5
    (tmp_path / "rows" / "held.jsonl").write_text("\n".join(chosen) + "\n", "utf-8")
    evaluate(request | out | {"channels": {"training": str(tmp_path / "rows")}}, Console(file=io.StringIO()))
    found = json.loads((tmp_path / "metrics.json").read_text("utf-8"))["loss"]
    expected = json.loads(folder.metrics.read_text("utf-8"))["tuned"]["loss"]
    assert found == pytest.approx(expected, abs=1e-6)


def test_less_memory_is_foreseen(runs: Runs) -> None:
    def memory(quantization: Quantization | None) -> int:
        model = load_model(runs.model, torch.device("cpu"), torch.float32, frozen=True, quantization=quantization)
        return estimate_resources(
            attach_adapter(model, Adapter(r=2, alpha=4, dropout=0.0, target_modules=("q_proj",)), 0), 1
        ).memory

    held = [Quantization(4), Quantization(4, double_quant=False), Quantization(8), None]
    needed = [memory(quantization) for quantization in held]
    assert needed == sorted(set(needed))


def test_without_the_library_nothing_is_begun(runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version = metadata.version

    def absent(name: str) -> str:
        if name == "bitsandbytes":
            raise metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(metadata, "version", absent)
    folder = lay_out(tmp_path / "run", runs.model, runs.rows, **SETTINGS, bits=4)
    with pytest.raises(SettingError, match=r"bits=4: needs bitsandbytes, .* pip install 'luthier\[quant\]'"):
        run(folder)
    assert not folder.ledger.exists()
    assert doctor.survey()["extras"]["quant"] is False


def test_the_doctor_knows_the_library() -> None:
    assert doctor.survey()["extras"]["quant"] is True
