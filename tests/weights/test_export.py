"""Exports load without Luthier and are the tuned model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from finished_runs import EVERY_RUN, FinishedRuns
from torch import Tensor
from weights.test_artifact import load_plainly

from luthier.errors import RunFolderError, UserError
from luthier.weights.artifact import PROVENANCE
from luthier.weights.export import export_adapter, export_merged, merge_model
from luthier.weights.resolved_model import ResolvedModel, resolve_model

CPU = torch.device("cpu")


def target_of(finished: FinishedRuns, architecture: str = "llama", method: str = "lora") -> ResolvedModel:
    return resolve_model(str(finished.get(architecture, method).folder.root), lambda _: None)


def merge_to(target: ResolvedModel, out: Path) -> Path:
    assert target.artifact is not None
    export_merged(merge_model(target.load(CPU, torch.float32)), target.artifact, target.base, out, target.provenance)
    return out


@pytest.fixture(scope="module")
def exports(finished: FinishedRuns, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    """The folder of all exports, and each one's logits in plain transformers or peft."""
    root = tmp_path_factory.mktemp("exports")
    folders: dict[str, Path] = {}
    for architecture, method in EVERY_RUN:
        target = target_of(finished, architecture, method)
        name = f"{architecture}-{method}"
        folders[name] = merge_to(target, root / name)
        if method == "lora":
            assert target.artifact is not None
            folders[f"{architecture}-adapter"] = root / f"{architecture}-adapter"
            export_adapter(target.artifact, root / f"{architecture}-adapter")
    return root, load_plainly(folders, root)


@pytest.mark.parametrize(("architecture", "method"), EVERY_RUN)
def test_merged_is_base_and_adapter(
    finished: FinishedRuns, exports: tuple[Path, dict[str, Tensor]], architecture: str, method: str
) -> None:
    root, logits = exports
    name = f"{architecture}-{method}"
    torch.testing.assert_close(logits[name], finished.get(architecture, method).logits, rtol=0, atol=1e-5)
    names = {path.name for path in (root / name).iterdir()}
    assert names >= {"model.safetensors", "config.json", "tokenizer.json", "template.json", PROVENANCE}
    assert not any(name.startswith("adapter") for name in names)
    stored = json.loads((root / name / PROVENANCE).read_text("utf-8"))
    assert stored["merged"] is True
    assert stored["data"]["files"]


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox", "gpt2"])
def test_the_adapter_is_the_adapter(
    finished: FinishedRuns, exports: tuple[Path, dict[str, Tensor]], architecture: str
) -> None:
    root, logits = exports
    run = finished.get(architecture)
    torch.testing.assert_close(logits[f"{architecture}-adapter"], run.logits, rtol=0, atol=1e-6)
    copied = {path.name: path.read_bytes() for path in (root / f"{architecture}-adapter").iterdir()}
    assert copied == {path.name: path.read_bytes() for path in run.folder.model.iterdir()}


def test_exports_are_targets_themselves(finished: FinishedRuns, exports: tuple[Path, dict[str, Tensor]]) -> None:
    for name, adapter in (("llama-lora", False), ("llama-adapter", True)):
        target = resolve_model(str(exports[0] / name), lambda _: None)
        assert (target.adapter is not None) is adapter
        assert target.provenance["kind"] == "instruction"


def test_a_full_run_has_no_adapter(finished: FinishedRuns, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="trained all weights, it has no adapter; use --merged"):
        export_adapter(finished.get("llama", "none").folder.model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_with_files_is_refused(finished: FinishedRuns, tmp_path: Path) -> None:
    target = target_of(finished)
    assert target.artifact is not None
    (tmp_path / "mine.txt").write_text("precious")
    for out in (tmp_path, tmp_path / "mine.txt"):
        with pytest.raises(RunFolderError, match="not empty; choose another --out"):
            export_adapter(target.artifact, out)
        with pytest.raises(RunFolderError, match="not empty; choose another --out"):
            merge_to(target, out)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
