"""Exports load without Luthier and are the tuned model."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from finished_runs import EVERY_RUN, FinishedRuns
from safetensors.torch import load_file
from tiny_models import CHAT_TEMPLATE
from torch import Tensor
from weights.test_artifact import load_plainly

from luthier.errors import RunFolderError, UserError
from luthier.jobfolder import PROVENANCE
from luthier.weights.export import ServedPrompt, export_adapter, export_merged, merge_model
from luthier.weights.plain_adapter import adapter_scale
from luthier.weights.resolved_model import ResolvedModel, resolve_model

CPU = torch.device("cpu")


PROMPT = ServedPrompt(chat_template=CHAT_TEMPLATE, stop_ids=(0, 2))


def target_of(finished: FinishedRuns, architecture: str = "llama", method: str = "lora") -> ResolvedModel:
    return resolve_model(str(finished.get(architecture, method).folder.root), lambda _: None)


def merge_to(target: ResolvedModel, out: Path) -> Path:
    assert target.artifact is not None
    export_merged(
        merge_model(target.load(CPU, torch.float32)), target.artifact, target.base, out, target.provenance, PROMPT
    )
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
            export_adapter(target.artifact, root / f"{architecture}-adapter", PROMPT)
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
    kept = {path.name: path.read_bytes() for path in run.folder.model.iterdir()}
    assert copied.keys() == kept.keys()
    differing = {name for name in copied if copied[name] != kept[name]}
    assert differing <= {"chat_template.jinja", "tokenizer_config.json"}  # where the chat template is


def test_exports_are_targets_themselves(finished: FinishedRuns, exports: tuple[Path, dict[str, Tensor]]) -> None:
    for name, adapter in (("llama-lora", False), ("llama-adapter", True)):
        target = resolve_model(str(exports[0] / name), lambda _: None)
        assert (target.adapter is not None) is adapter
        assert target.provenance["kind"] == "instruction"


def test_a_full_run_has_no_adapter(finished: FinishedRuns, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="trained all weights, it has no adapter; use --merged"):
        export_adapter(finished.get("llama", "none").folder.model, tmp_path / "out", PROMPT)
    assert not (tmp_path / "out").exists()


def test_a_folder_with_files_is_refused(finished: FinishedRuns, tmp_path: Path) -> None:
    target = target_of(finished)
    assert target.artifact is not None
    (tmp_path / "mine.txt").write_text("precious")
    for out in (tmp_path, tmp_path / "mine.txt"):
        with pytest.raises(RunFolderError, match="not empty; choose another --out"):
            export_adapter(target.artifact, out, PROMPT)
        with pytest.raises(RunFolderError, match="not empty; choose another --out"):
            merge_to(target, out)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_the_chat_template_and_the_stop_tokens_are_where_each_program_looks(
    exports: tuple[Path, dict[str, Tensor]],
) -> None:
    for name in ("llama-lora", "llama-adapter", "gpt2-none"):
        folder = exports[0] / name
        assert (folder / "chat_template.jinja").read_text("utf-8") == PROMPT.chat_template
        config = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
        assert config["chat_template"] == PROMPT.chat_template
    assert json.loads((exports[0] / "llama-lora" / "generation_config.json").read_text())["eos_token_id"] == [0, 2]


def test_without_a_chat_template_the_bases_is_left_out(finished: FinishedRuns, tmp_path: Path) -> None:
    artifact = finished.get().folder.model
    assert (artifact / "chat_template.jinja").is_file()
    export_adapter(artifact, tmp_path / "out", ServedPrompt(chat_template=None))
    assert not (tmp_path / "out" / "chat_template.jinja").exists()
    assert "chat_template" not in json.loads((tmp_path / "out" / "tokenizer_config.json").read_text("utf-8"))


def test_files_have_the_mode_of_new_files(finished: FinishedRuns, exports: tuple[Path, dict[str, Tensor]]) -> None:
    umask = os.umask(0)
    os.umask(umask)
    for folder in (finished.get().folder.model, finished.get("llama", "none").folder.model, exports[0] / "llama-lora"):
        for path in folder.iterdir():
            assert path.stat().st_mode & 0o777 == 0o666 & ~umask, path


@pytest.mark.parametrize(
    "settings", [{}, {"use_rslora": "True", "lora_r": "8", "lora_alpha": "16"}], ids=["alpha", "rs"]
)
def test_a_plain_adapter_has_its_scale_in_its_weights(
    finished: FinishedRuns, tmp_path: Path, settings: dict[str, str]
) -> None:
    run = finished.train(f"plain-{len(settings)}", finished.base("llama"), finished.get().rows, **settings)
    scale = adapter_scale(run.folder.model)
    assert scale == (16 / 8**0.5 if settings else 32 / 4)
    export_adapter(run.folder.model, tmp_path / "out", PROMPT, plain=True)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text("utf-8"))
    assert (config["lora_alpha"], config["use_rslora"]) == (config["r"], False)
    assert adapter_scale(tmp_path / "out") == 1
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (run.folder.model, tmp_path / "out"))
    for name, value in before.items():
        assert torch.equal(after[name], value * scale if "lora_B" in name else value)
    logits = load_plainly({"out": tmp_path / "out"}, tmp_path)["out"]
    torch.testing.assert_close(logits, run.logits, rtol=0, atol=1e-5)


def test_dora_has_no_plain_form(finished: FinishedRuns, tmp_path: Path) -> None:
    run = finished.train("dora", finished.base("llama"), finished.get().rows, use_dora="True")
    with pytest.raises(UserError, match="use_dora=True, whose magnitudes have no plain form; use --merged"):
        export_adapter(run.folder.model, tmp_path / "out", PROMPT, plain=True)
    assert not (tmp_path / "out").exists()
