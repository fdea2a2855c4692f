"""An adapter as the model: trained further as plain PEFT would, or merged first; its base found, or refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tiny_models import write_model
from torch import Tensor
from torch.nn import functional as F
from training.job_folders import lay_out, run
from transformers import AutoModelForCausalLM

from luthier.catalog.locate import locate
from luthier.catalog.tuned_adapter import read_adapter
from luthier.data.prepare import prepare
from luthier.data.tokenize import Tokenizer
from luthier.errors import ModelNotFoundError, RunFolderError, SettingError, UserError
from luthier.home import cache_root
from luthier.jobfolder import JobFolder
from luthier.training.resolved_job import resolve_job
from luthier.weights.resolved_model import resolve_model

# Plain PEFT 0.21 reads a deprecated attribute of transformers 5.23.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
# Epsilon 1 makes the first step proportional to the gradient; else it would be its sign, and rounding decide.
ONE_STEP = {
    "max_steps": 1, "per_device_train_batch_size": 64, "lora_dropout": 0.0, "learning_rate": 0.5,
    "lr_scheduler_type": "constant", "max_grad_norm": 0, "adam_epsilon": 1.0, "load_best_model_at_end": "False",
}  # fmt: skip


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, base: Path, rows: Path) -> JobFolder:
    """A run with settings that are not the defaults."""
    folder = lay_out(tmp_path_factory.mktemp("first") / "run", base, rows, lora_r=4, lora_alpha=6, use_rslora=True)
    run(folder)
    return folder


def read(path: Path) -> dict[str, Any]:
    stored: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return stored


def adapter_of(folder: JobFolder) -> dict[str, Tensor]:
    return load_file(folder.model / "adapter_model.safetensors")


def one_step_of_peft(folder: JobFolder, base: Path, adapter: Path) -> dict[str, Tensor]:
    """The adapter's weights after one step of torch's AdamW on the job's training rows."""
    job = resolve_job(folder, print)
    dataset = prepare(job.channels, job.data, Tokenizer.load(base, None, None), cache_root(), print)
    model: Any = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(adapter), is_trainable=True)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.5, eps=1.0, weight_decay=0.0)
    model.eval()  # PEFT makes the stored dropout's modules in training mode
    losses = []
    for index in dataset.split.train:
        ids, trained = dataset.tokens.row(int(index))
        tokens = torch.from_numpy(ids.astype("int64"))[None]
        losses.append(
            F.cross_entropy(model(tokens).logits[0, :-1], tokens[0, 1:], reduction="none")[
                torch.from_numpy(trained[1:].astype(bool))
            ]
        )
    torch.cat(losses).mean().backward()
    optimizer.step()
    return {name.replace(".default", ""): p.detach() for name, p in model.named_parameters() if p.requires_grad}


def test_the_adapter_is_trained_further_as_by_plain_peft(
    first: JobFolder, base: Path, rows: Path, tmp_path: Path
) -> None:
    folder = lay_out(tmp_path / "run", first.root, rows, **ONE_STEP)
    printed = " ".join(run(folder).split())
    assert f"training the adapter in {first.model} further: LoRA on q_proj," in printed
    assert "rsLoRA r=4 alpha=6" in printed
    expected, trained, before = one_step_of_peft(folder, base, first.model), adapter_of(folder), adapter_of(first)
    assert trained.keys() == expected.keys() == before.keys()
    for name, value in trained.items():
        assert not torch.equal(value, before[name])
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-6)
    config, earlier = (read(each.model / "adapter_config.json") for each in (folder, first))
    assert {key: config[key] for key in ("r", "lora_alpha", "use_rslora")} == {
        key: earlier[key] for key in ("r", "lora_alpha", "use_rslora")
    }
    assert set(config["target_modules"]) == set(earlier["target_modules"])
    # What it starts from is the tuned model of the first run, on the same held-out rows.
    assert read(folder.metrics)["base"]["loss"] == pytest.approx(read(first.metrics)["tuned"]["loss"], rel=1e-6)
    made_of = read(folder.model / "luthier.json")["model"]
    assert (made_of["folder"], made_of["adapter"]["folder"]) == (str(base), str(first.model))


def test_a_continued_adapter_reloads_as_it_was_scored(first: JobFolder, base: Path, rows: Path, tmp_path: Path) -> None:
    folder = lay_out(tmp_path / "run", first.model, rows)
    run(folder)
    metrics = read(folder.metrics)
    assert metrics["tuned"]["loss"] < metrics["base"]["loss"]
    tokens = torch.arange(3, 23)[None]
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(folder.model))
    loaded = resolve_model(str(folder.root), print).load(torch.device("cpu"), torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(loaded.network(tokens).logits, plain(tokens).logits)


def test_merged_first_the_result_is_a_whole_model(first: JobFolder, base: Path, rows: Path, tmp_path: Path) -> None:
    folder = lay_out(tmp_path / "run", first.root, rows, continue_as="merged", lora_r=2)
    assert "the result is a whole model" in " ".join(run(folder).split())
    metrics = read(folder.metrics)
    assert metrics["base"]["loss"] == pytest.approx(read(first.metrics)["tuned"]["loss"], rel=1e-5)
    assert metrics["tuned"]["loss"] < metrics["base"]["loss"]
    assert metrics["cost"]["trainable_parameters"] > 0
    assert metrics["adapted_layers"].startswith("q_proj")
    assert not (folder.model / "adapter_config.json").exists()
    plain: Any = AutoModelForCausalLM.from_pretrained(folder.model)
    loaded = resolve_model(str(folder.root), print).load(torch.device("cpu"), torch.float32)
    tokens = torch.arange(3, 23)[None]
    with torch.no_grad():
        torch.testing.assert_close(loaded.network(tokens).logits, plain(tokens).logits)
    again = lay_out(tmp_path / "again", folder.root, rows, max_steps=1)  # a whole model, by its run folder
    run(again)
    assert read(again.metrics)["base"]["loss"] == pytest.approx(metrics["tuned"]["loss"], rel=1e-5)


def test_merged_first_all_weights_are_trained(first: JobFolder, rows: Path, tmp_path: Path) -> None:
    folder = lay_out(tmp_path / "run", first.root, rows, continue_as="merged", peft_type="none", max_steps=2)
    run(folder)
    metrics = read(folder.metrics)
    assert metrics["base"]["loss"] == pytest.approx(read(first.metrics)["tuned"]["loss"], rel=1e-5)
    assert metrics["cost"]["trainable_parameters"] == metrics["cost"]["parameters"]
    assert (folder.model / "model.safetensors").is_file()


def test_another_adapter_is_another_run(first: JobFolder, rows: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    shutil.copytree(first.model, adapter)
    folder = lay_out(tmp_path / "run", adapter, rows)
    before = resolve_job(folder, print).fingerprint("data", "weights")
    config = read(adapter / "adapter_config.json")
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"lora_dropout": 0.2}))
    assert resolve_job(folder, print).fingerprint("data", "weights") != before


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"lora_r": 8}, "lora_r=8: the adapter in .* has 4; leave it out, or set continue_as=merged"),
        ({"lora_alpha": 32}, "lora_alpha=32: the adapter in .* has 6"),
        ({"use_rslora": "False"}, "use_rslora=False: the adapter in .* has True"),
        ({"use_dora": "True"}, "use_dora=True: the adapter in .* has False"),
        ({"peft_type": "none"}, "peft_type=none: the adapter in .* has lora"),
        ({"lora_target_modules": "q_proj"}, "lora_target_modules=q_proj: the adapter in .* has .*down_proj"),
        ({"continue_as": "merged", "bits": 4}, "continue_as=merged with bits=4"),
        ({"train_from_scratch": "True", "peft_type": "none"}, "train_from_scratch=True"),
    ],
)
def test_a_setting_that_the_adapter_fixes_otherwise_is_refused(
    first: JobFolder, rows: Path, tmp_path: Path, settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(SettingError, match=words):
        resolve_job(lay_out(tmp_path / "run", first.root, rows, **settings), print)


def test_settings_equal_to_the_adapters_are_taken(first: JobFolder, rows: Path, tmp_path: Path) -> None:
    targets = ",".join(read(first.model / "adapter_config.json")["target_modules"])
    same = {"lora_r": 4, "lora_alpha": 6, "use_rslora": "True", "peft_type": "lora", "lora_target_modules": targets}
    method = resolve_job(lay_out(tmp_path / "run", first.root, rows, **same, lora_dropout=0.3), print).settings.method
    assert (method.r, method.alpha, method.rslora, method.dropout) == (4, 6, True, 0.3)


def moved(first: JobFolder, folder: Path, repository: str | None) -> Path:
    """The adapter as on another machine: its base's folder is not there."""
    shutil.copytree(first.model, folder)
    provenance = read(folder / "luthier.json")
    provenance["model"] |= {"folder": "/elsewhere/llama", "repository": repository, "name": repository or "llama-x"}
    (folder / "luthier.json").write_text(json.dumps(provenance))
    return folder


def test_the_base_is_found_by_its_repository(
    first: JobFolder, base: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LUTHIER_MODELS", str(tmp_path / "models"))
    shutil.copytree(base, tmp_path / "models" / "some" / "llama")
    job = resolve_job(lay_out(tmp_path / "run", moved(first, tmp_path / "adapter", "some/llama"), rows), print)
    assert job.base == tmp_path / "models" / "some" / "llama"
    other = write_model(tmp_path / "models" / "some" / "other", "llama", positions=128)
    wrong = lay_out(tmp_path / "wrong", moved(first, tmp_path / "wrong-adapter", "some/other"), rows)
    with pytest.raises(ModelNotFoundError, match=f"{other}: not the weights that the adapter was trained on"):
        resolve_job(wrong, print)


def test_a_base_that_is_nowhere_is_named(first: JobFolder, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="its base model was not found; searched /elsewhere/llama, llama-x"):
        locate(str(moved(first, tmp_path / "adapter", None)))


def test_an_adapter_from_elsewhere_names_its_base_by_repository_only(
    first: JobFolder, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(first.model, folder, ignore=shutil.ignore_patterns("luthier.json"))
    with pytest.raises(UserError, match=r"base_model_name_or_path '/.*' is no ORG/NAME"):
        locate(str(folder))
    config = read(folder / "adapter_config.json")
    (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "some/llama"}))
    monkeypatch.setenv("LUTHIER_MODELS", str(tmp_path / "models"))
    shutil.copytree(base, tmp_path / "models" / "some" / "llama")
    location = locate(str(folder))
    assert (location.name, location.folder) == ("some/llama", tmp_path / "models" / "some" / "llama")
    assert location.adapter is not None
    assert location.adapter.base_sha256 is None
    loaded = resolve_model(str(folder), print).load(torch.device("cpu"), torch.float32)  # as generate and evaluate do
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(folder))
    tokens = torch.arange(3, 23)[None]
    with torch.no_grad():
        torch.testing.assert_close(loaded.network(tokens).logits, plain(tokens).logits)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"no adapter_model\.safetensors; save the adapter with safe_serialization"):
        locate(str(folder))


def test_another_kind_of_adapter_is_refused(first: JobFolder, tmp_path: Path) -> None:
    (tmp_path / "adapter_model.safetensors").touch()
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "IA3", "base_model_name_or_path": "some/llama"}')
    with pytest.raises(UserError, match="peft_type 'IA3' is not supported"):
        read_adapter(tmp_path)


def test_an_unfinished_run_is_no_model(base: Path, rows: Path, tmp_path: Path) -> None:
    folder = lay_out(tmp_path / "run", base, rows)
    with pytest.raises(RunFolderError, match="no model yet"):
        locate(str(folder.root))


def test_continue_as_without_an_adapter_is_said(base: Path, rows: Path, tmp_path: Path) -> None:
    job = resolve_job(lay_out(tmp_path / "run", base, rows, continue_as="merged"), print)
    assert "continue_as has no effect: the model is not an adapter" in job.warnings
