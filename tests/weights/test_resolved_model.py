"""What RUN_OR_MODEL stands for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from finished_runs import PROBE, SETTINGS, FinishedRun, FinishedRuns
from tiny_models import network_of, write_model
from torch import Tensor

from luthier.errors import ModelNotFoundError, RunFolderError
from luthier.jobfolder import JobFolder
from luthier.jobspec import JobSpec
from luthier.supervisor.archive import unpack
from luthier.weights.fingerprint import weights_hash
from luthier.weights.resolved_model import ResolvedModel, resolve_model

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # its environment was read at import


def find(name: Path | str) -> ResolvedModel:
    return resolve_model(str(name), lambda _: None)


def logits_of(target: ResolvedModel) -> Tensor:
    with torch.no_grad():
        network: Any = target.load(CPU, target.dtype or torch.float32).network
        logits: Tensor = network(input_ids=PROBE, use_cache=False).logits
    return logits


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox", "gpt2"])
@pytest.mark.parametrize("method", ["lora", "none"])
def test_a_run_is_the_model_it_trained(finished: FinishedRuns, architecture: str, method: str) -> None:
    run = finished.get(architecture, method)
    target = find(run.folder.root)
    assert target.base == (run.base if method == "lora" else run.folder.model)
    assert (target.adapter is not None) is (method == "lora")
    assert (target.name, target.artifact, target.dtype) == (str(run.folder.root), run.folder.model, torch.float32)
    torch.testing.assert_close(logits_of(target), run.logits, rtol=0, atol=1e-6)


def test_what_is_loaded_to_answer_is_frozen(finished: FinishedRuns) -> None:
    model = find(finished.get().folder.root).load(CPU, torch.float32)
    assert model.trainable_parameters() == {}
    assert not model.network.training


def test_an_artifact_folder_is_a_target(finished: FinishedRuns, tmp_path: Path) -> None:
    run = finished.get()
    unpack(run.folder.artifact, tmp_path / "model")
    shutil.copytree(tmp_path / "model", tmp_path / "elsewhere")
    assert find(run.folder.model).name == str(run.folder.root)
    assert find(tmp_path / "elsewhere").name == str(tmp_path / "elsewhere")
    torch.testing.assert_close(logits_of(find(tmp_path / "elsewhere")), run.logits, rtol=0, atol=1e-6)


def test_a_base_model_is_a_target(finished: FinishedRuns) -> None:
    base = finished.base("gpt2")
    target = find(base)
    assert target.base == base
    assert (target.adapter, target.artifact, target.provenance, target.dtype) == (None, None, {}, None)
    with torch.no_grad():
        torch.testing.assert_close(logits_of(target), network_of("gpt2")(input_ids=PROBE).logits)
    assert find("luthier/tiny").entry is not None


def test_an_unfinished_run_says_how_to_finish(tmp_path: Path) -> None:
    JobFolder(tmp_path / "run").create(JobSpec(model="luthier/tiny"), {"training": tmp_path})
    with pytest.raises(RunFolderError, match=r"has no model yet; finish it with luthier tune --resume --out"):
        find(tmp_path / "run")


def test_an_unknown_name_says_where_it_looked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTHIER_MODELS", str(tmp_path / "mirror"))
    with pytest.raises(ModelNotFoundError, match="mirror/acme/none") as caught:
        find("acme/none")
    assert "\n" not in str(caught.value)


def moved(run: FinishedRun, tmp_path: Path, **model: Any) -> Path:
    """The run's artifact elsewhere, its base recorded differently."""
    folder = tmp_path / "moved"
    shutil.copytree(run.folder.model, folder)
    stored = json.loads((folder / "luthier.json").read_text("utf-8"))
    stored["model"] |= {name: str(value) for name, value in model.items()}
    (folder / "luthier.json").write_text(json.dumps(stored))
    return folder


def test_a_moved_base_is_found_by_its_name(
    finished: FinishedRuns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = finished.get()
    artifact = moved(run, tmp_path, folder=tmp_path / "gone", name="acme/small", repository="acme/small")
    with pytest.raises(ModelNotFoundError, match="acme/small"):
        find(artifact)
    shutil.copytree(run.base, tmp_path / "mirror" / "acme" / "small")
    monkeypatch.setenv("LUTHIER_MODELS", str(tmp_path / "mirror"))
    target = find(artifact)
    assert target.base == tmp_path / "mirror" / "acme" / "small"
    torch.testing.assert_close(logits_of(target), run.logits, rtol=0, atol=1e-6)


def test_a_base_that_was_a_folder_and_is_gone(finished: FinishedRuns, tmp_path: Path) -> None:
    artifact = moved(finished.get(), tmp_path, folder=tmp_path / "gone", name=tmp_path / "gone")
    with pytest.raises(ModelNotFoundError, match="the base model that the adapter was trained on is gone") as caught:
        find(artifact)
    assert str(tmp_path / "gone") in str(caught.value)


def test_other_weights_in_the_bases_place_are_refused(finished: FinishedRuns, tmp_path: Path) -> None:
    other = write_model(tmp_path / "other", "llama", seed=1)
    artifact = moved(finished.get(), tmp_path, folder=other)
    with pytest.raises(ModelNotFoundError, match="not the weights that the adapter was trained on") as caught:
        find(artifact)
    assert "\n" not in str(caught.value)


def test_the_hash_sees_weights_and_shape(tmp_path: Path) -> None:
    first, same = write_model(tmp_path / "a", "llama"), write_model(tmp_path / "b", "llama")
    assert weights_hash(first) == weights_hash(same)
    assert weights_hash(first) != weights_hash(write_model(tmp_path / "c", "llama", seed=1))
    config = same / "config.json"
    config.write_text(config.read_text().replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'))
    weights_hash.cache_clear()
    assert weights_hash(first) != weights_hash(same)


def test_a_full_run_needs_no_base(finished: FinishedRuns, tmp_path: Path) -> None:
    artifact = moved(finished.get("gpt2", "none"), tmp_path, folder=tmp_path / "gone")
    assert find(artifact).base == artifact


def test_settings_are_typed_in_the_provenance(finished: FinishedRuns) -> None:
    settings = find(finished.get().folder.root).provenance["settings"]
    assert settings["max_steps"] == int(SETTINGS["max_steps"])
